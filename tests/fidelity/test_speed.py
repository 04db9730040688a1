"""SPEED against the constrained least squares that it solves, the authors' expression of it, and its promises."""

from typing import Any

import numpy as np
import pytest
import torch
from written_out import ANIMALS, BIRD, CAT, assert_same, encode, last, projections

from efface.concepts.concept import Concept
from efface.models.base import Base
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods.speed import SPEED, cluster_centres, least_seen, moved_most

THRESHOLD, RIDGE = 0.3, 0.4
PLAIN = {"threshold": THRESHOLD, "ridge": RIDGE, "augmentations": 0}
TARGETS, ANCHORS, RETAINED = ("a cat", "a bird"), ("a good dog", "a sky"), ("a good dog", "some fish")


def solve(base: Base, *concepts: Concept, **config: Any) -> dict[str, torch.Tensor]:
    return SPEED(parse_config("speed", config)).solve(UnlearningTask(base, concepts, ANIMALS, seed=0))


def rows(base: Base, prompts: tuple[str, ...]) -> np.ndarray:
    return np.stack([last(base, prompt) for prompt in prompts])


def invariants(base: Base) -> np.ndarray:
    """The first token and three centres of the empty prompt's others, (4, d)."""
    empty = encode(base, "")[0]
    return np.concatenate([empty[:1], cluster_centres(torch.from_numpy(empty[1:]), 3).numpy()])


def null_vectors(retained: np.ndarray) -> np.ndarray:
    """Orthonormal directions (k, d) that the retained keys use by less than the threshold."""
    values, vectors = np.linalg.eigh(retained.T @ retained / len(retained))
    return vectors[:, values < THRESHOLD].T


def test_the_change_is_the_least_squares_within_the_null_space_that_leaves_the_invariants(tiny_base: Base) -> None:
    targets, anchors = rows(tiny_base, TARGETS), rows(tiny_base, ANCHORS)
    free = null_vectors(rows(tiny_base, RETAINED))
    # coordinates in which an invariant is not seen: the kernel of (free K^T)^T
    unseen = np.linalg.svd(invariants(tiny_base) @ free.T)[2][4:] @ free
    assert 4 < len(unseen) < targets.shape[1]
    expected = {}
    for name, old in projections(tiny_base, "to_v").items():
        design = np.concatenate([targets @ unseen.T / np.sqrt(2), np.sqrt(RIDGE) * np.eye(len(unseen))])
        wanted = np.concatenate([(anchors - targets) @ old.T / np.sqrt(2), np.zeros((len(unseen), len(old)))])
        expected[name] = old + np.linalg.lstsq(design, wanted, rcond=None)[0].T @ unseen
    assert_same(solve(tiny_base, CAT, BIRD, filter=False, **PLAIN), expected)


@pytest.mark.parametrize("price", [0.0, 0.5])
def test_it_is_the_expression_of_the_authors_code_with_its_filter(price: float, tiny_base: Base) -> None:
    targets, anchors, retained = (rows(tiny_base, prompts) for prompts in (TARGETS, ANCHORS, RETAINED))
    second, cross, identity = targets.T @ targets / 2, anchors.T @ targets / 2, np.eye(targets.shape[1])
    k = invariants(tiny_base).T
    expected = {}
    for name, old in projections(tiny_base, "to_v").items():
        unconstrained = old @ (cross - second) @ np.linalg.inv(identity + second)
        norms = np.linalg.norm(retained @ unconstrained.T, axis=1)
        free = null_vectors(retained[norms > norms.mean()])
        p = free.T @ free
        m = np.linalg.inv(second @ p + RIDGE * identity)
        held = np.linalg.inv(k.T @ p @ m @ k + price * np.eye(4))
        expected[name] = old + old @ (cross - second) @ p @ (identity - m @ k @ held @ k.T @ p) @ m
    assert_same(solve(tiny_base, CAT, BIRD, invariant_ridge=price, **PLAIN), expected)


@pytest.mark.parametrize(
    "config", [{}, {"layers": "kv", "tokens": "whole"}, {"preserve": "none"}, {"sequential": True}]
)
def test_invariants_do_not_move(config: dict[str, Any], tiny_base: Base) -> None:
    k = invariants(tiny_base)
    old, new = projections(tiny_base, "to_k", "to_v"), solve(tiny_base, CAT, BIRD, threshold=THRESHOLD, **config)
    for name, value in new.items():
        change = value.double().numpy() - old[name]
        assert np.abs(change).max() > 1e-4
        assert np.abs(change @ k.T).max() < 1e-4 * np.abs(old[name] @ k.T).max()


def test_only_values_are_edited_unless_keys_are_asked_for(tiny_base: Base) -> None:
    assert solve(tiny_base, CAT).keys() == projections(tiny_base, "to_v").keys()
    assert solve(tiny_base, CAT, layers="kv").keys() == projections(tiny_base, "to_k", "to_v").keys()


def test_in_sequence_a_change_reads_nothing_that_an_earlier_one_read_and_moves_no_anchor(tiny_base: Base) -> None:
    config = {**PLAIN, "sequential": True, "filter": False, "preserve": ["some fish"]}
    first, both = solve(tiny_base, CAT, **config), solve(tiny_base, CAT, BIRD, **config)
    for name, old in projections(tiny_base, "to_v").items():
        one = first[name].double().numpy() - old
        two = both[name].double().numpy() - old - one
        assert np.abs(one @ two.T).max() < 1e-5 * np.linalg.norm(one) * np.linalg.norm(two) + 1e-8
        assert np.abs(two).max() > 1e-4
        assert np.abs(one @ last(tiny_base, "a good dog")).max() < 1e-5
        assert np.abs(two @ last(tiny_base, "a sky")).max() < 1e-5


def test_the_filter_keeps_the_keys_that_move_by_more_than_the_mean() -> None:
    keys = torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    change = torch.tensor([[1.0, 0.0], [0.0, 0.1]])  # moves of 3, 0.3 and about 1
    assert moved_most(keys, change).tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("rows", [[[3.0, 1.0]], [[2.0, 0.0], [2.0, 0.0]]])
def test_the_filter_keeps_all_keys_where_none_moves_by_more_than_the_others(rows: list[list[float]]) -> None:
    """So that a single retained prompt is retained."""
    assert moved_most(torch.tensor(rows), torch.eye(2)).tolist() == rows


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_the_direction_of_augmentation_is_the_last_right_singular_vector(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).normal(size=shape)
    expected = np.linalg.svd(weight, full_matrices=False)[2][-1]
    found = least_seen(torch.from_numpy(weight)).numpy()
    assert abs(found @ expected) == pytest.approx(1, abs=1e-10) and np.linalg.norm(found) == pytest.approx(1)


def test_augmented_keys_lie_along_that_direction_and_are_filtered_too(tiny_base: Base) -> None:
    weight = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keys = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    method = SPEED(parse_config("speed", {"filter": False, "augmentations": 6}))
    found = method.retained(weight, torch.eye(4, dtype=torch.float64), keys, torch.Generator().manual_seed(2))
    assert torch.equal(found[:2], keys) and 2 < len(found) < 14
    direction = least_seen(weight)
    for copy in found[2:]:
        away = (copy - keys) - ((copy - keys) @ direction)[:, None] * direction
        assert away.norm(dim=1).min() < 1e-12


def test_centres_of_three_far_groups_are_their_means() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(n, 6)) + 100 * np.eye(6)[n] for n in (2, 3, 5)]
    found = cluster_centres(torch.from_numpy(np.concatenate(groups)), 3).numpy()
    expected = sorted(group.mean(axis=0).tolist() for group in groups)
    np.testing.assert_allclose(sorted(found.tolist()), expected)
