"""The closed-form solver against its equation, written out with an explicit inverse, and its limits."""

import numpy as np
import pytest
import torch

from efface.train.closed_form import invariant_solve, key_statistics, ridge_solve, row_basis, used_basis

D_IN, D_OUT = 12, 7


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def test_the_solve_is_equation_7_with_an_explicit_inverse(rng: np.random.Generator) -> None:
    weight, ridge = rng.normal(size=(D_OUT, D_IN)), 0.3
    left, right = ridge * weight, ridge * np.eye(D_IN)
    statistics = None
    for strength, count in ((1.0, 3), (0.25, 5)):
        keys, values = rng.normal(size=(count, D_IN)), rng.normal(size=(count, D_OUT))
        for c, v in zip(keys, values, strict=True):
            left += strength * np.outer(v, c)
            right += strength * np.outer(c, c)
        part = key_statistics(tensor(keys), tensor(values), strength)
        statistics = part if statistics is None else statistics + part
    assert statistics is not None
    solved = ridge_solve(tensor(weight), statistics, ridge).numpy()
    np.testing.assert_allclose(solved, left @ np.linalg.inv(right), rtol=1e-11)


def test_with_nothing_to_preserve_and_free_change_a_key_maps_exactly_to_its_new_value(
    rng: np.random.Generator,
) -> None:
    weight, keys = tensor(rng.normal(size=(D_OUT, D_IN))), tensor(rng.normal(size=(3, D_IN)))
    values = tensor(rng.normal(size=(3, D_OUT)))
    solved = ridge_solve(weight, key_statistics(keys, values), ridge=1e-9)
    torch.testing.assert_close(keys @ solved.T, values, rtol=0, atol=1e-6)


def test_a_preserved_key_keeps_its_value(rng: np.random.Generator) -> None:
    weight = tensor(rng.normal(size=(D_OUT, D_IN)))
    erased, preserved = tensor(rng.normal(size=(2, D_IN))), tensor(rng.normal(size=(4, D_IN)))
    values = tensor(rng.normal(size=(2, D_OUT)))
    statistics = key_statistics(erased, values) + key_statistics(preserved, preserved @ weight.T)
    solved = ridge_solve(weight, statistics, ridge=1e-9)
    torch.testing.assert_close(preserved @ solved.T, preserved @ weight.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(erased @ solved.T, values, rtol=0, atol=1e-6)


def test_what_is_orthogonal_to_all_keys_is_not_touched(rng: np.random.Generator) -> None:
    weight, keys = tensor(rng.normal(size=(D_OUT, D_IN))), tensor(rng.normal(size=(3, D_IN)))
    away = torch.linalg.svd(keys).Vh[3:]
    solved = ridge_solve(weight, key_statistics(keys, tensor(rng.normal(size=(3, D_OUT)))), ridge=0.5)
    torch.testing.assert_close(away @ solved.T, away @ weight.T, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(solved - weight) == 3


def test_keys_that_keep_their_values_change_nothing(rng: np.random.Generator) -> None:
    weight, keys = tensor(rng.normal(size=(D_OUT, D_IN))), tensor(rng.normal(size=(5, D_IN)))
    solved = ridge_solve(weight, key_statistics(keys, keys @ weight.T), ridge=0.1)
    torch.testing.assert_close(solved, weight, rtol=0, atol=1e-12)


def test_statistics_of_parts_add_up_to_those_of_the_whole(rng: np.random.Generator) -> None:
    keys, values = tensor(rng.normal(size=(8, D_IN))), tensor(rng.normal(size=(8, D_OUT)))
    parts = key_statistics(keys[:3], values[:3]) + key_statistics(keys[3:], values[3:])
    whole = key_statistics(keys, values)
    torch.testing.assert_close(parts.value_key, whole.value_key)
    torch.testing.assert_close(parts.key_key, whole.key_key)


def test_one_map_of_keys_serves_every_layer(rng: np.random.Generator) -> None:
    keys, guides = tensor(rng.normal(size=(3, D_IN))), tensor(rng.normal(size=(3, D_IN)))
    shared = ridge_solve(torch.eye(D_IN), key_statistics(keys, guides), ridge=0.5)
    for width in (4, 9):
        weight = tensor(rng.normal(size=(width, D_IN)))
        alone = ridge_solve(weight, key_statistics(keys, guides @ weight.T), ridge=0.5)
        torch.testing.assert_close(weight @ shared, alone)


def test_fp64_survives_keys_that_share_a_huge_mean_where_fp32_does_not(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(D_OUT, D_IN))
    keys = 300.0 * rng.normal(size=(1, D_IN)) + rng.normal(size=(20, D_IN))
    values, ridge = rng.normal(size=(20, D_OUT)), 0.01
    # the same minimum by least squares on [keys; sqrt(ridge) I], which never squares the condition number
    stacked = np.concatenate([keys, np.sqrt(ridge) * np.eye(D_IN)])
    wanted = np.concatenate([values - keys @ weight.T, np.zeros((D_IN, D_OUT))])
    expected = weight + np.linalg.lstsq(stacked, wanted, rcond=None)[0].T
    error = {}
    for dtype in (torch.float64, torch.float32):
        statistics = key_statistics(tensor(keys), tensor(values), dtype=dtype)
        error[dtype] = np.abs(ridge_solve(tensor(weight), statistics, ridge).numpy() - expected).max()
    assert error[torch.float64] < 1e-8
    assert error[torch.float32] > 1e-3


def test_the_used_directions_are_those_that_rows_use_by_the_threshold_and_more(rng: np.random.Generator) -> None:
    for count in (5, 40):  # fewer rows than dimensions, and more
        rows = rng.normal(size=(count, D_IN)) * np.linspace(0.1, 2, D_IN)
        values, vectors = np.linalg.eigh(rows.T @ rows / count)
        used = vectors[:, values >= 0.5]
        assert 0 < used.shape[1] < D_IN
        found = used_basis(tensor(rows), 0.5).numpy()
        np.testing.assert_allclose(found.T @ found, used @ used.T, atol=1e-10)


def test_without_rows_nothing_is_used() -> None:
    assert used_basis(torch.zeros(0, 3), 0.1).shape == (0, 3)


@pytest.mark.parametrize("price", [0.0, 0.5])
def test_what_a_change_reads_is_the_expression_with_explicit_inverses(price: float, rng: np.random.Generator) -> None:
    keys, held, rows = (rng.normal(size=(count, D_IN)) for count in (3, 2, 4))
    used = np.linalg.qr(rows.T)[0].T
    p, ridge = np.eye(D_IN) - used.T @ used, 0.3
    q = p @ np.linalg.inv(keys.T @ keys @ p + ridge * np.eye(D_IN))
    inner = np.linalg.inv(held @ q @ held.T + price * np.eye(2))
    expected = keys @ (q - q @ held.T @ inner @ held @ q)
    found = invariant_solve(tensor(keys), tensor(used), tensor(held), ridge, price).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_basis_leaves_out_directions_that_are_rounding() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-13, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    basis = row_basis(rows)
    torch.testing.assert_close(basis.T @ basis, torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)))
    assert row_basis(torch.zeros(0, 3)).shape == (0, 3)


def test_invariants_outside_the_null_space_cost_nothing(rng: np.random.Generator) -> None:
    keys, held = tensor(rng.normal(size=(2, D_IN))), tensor(np.eye(D_IN)[:2])
    used = tensor(np.eye(D_IN)[:3])
    alone = invariant_solve(keys, used, held[:0], 0.3, 0.0)
    torch.testing.assert_close(invariant_solve(keys, used, held, 0.3, 0.0), alone)
