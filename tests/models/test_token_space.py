"""Projections, and the moves of searches over tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.models.text.token_space import (
    best_exchanges,
    cross_over,
    exchange_one,
    mutate,
    nearest_tokens,
    next_generation,
    project_to_simplex,
    sample_tokens,
    straight_through,
)

SEEDS = st.integers(0, 2**31)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


@given(SEEDS, st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_the_projection_is_on_the_simplex_and_nothing_there_is_nearer(seed: int, size: int) -> None:
    point = drawn(seed, 2, size)
    found = project_to_simplex(point)
    assert (found >= 0).all() and torch.allclose(found.sum(-1), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(project_to_simplex(found), found)
    # the projection is the one point from which no point y of the simplex lies at an acute angle: <x - p, y - p> <= 0
    others = torch.softmax(drawn(seed + 1, 50, 2, size), dim=-1)
    corners = torch.eye(size, dtype=torch.float64)[:, None].expand(-1, 2, -1)
    for y in (*others, *corners):
        assert (((point - found) * (y - found)).sum(-1) <= 1e-9).all()


def test_the_projection_of_one_case_by_hand() -> None:
    assert project_to_simplex(torch.tensor([[2.0, 1.5, -1.0]])).tolist() == [[0.75, 0.25, 0.0]]


def test_a_drawn_token_is_one_hot_and_has_the_gradient_of_the_weights() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]], requires_grad=True)
    found = sample_tokens(weights, torch.Generator().manual_seed(0))
    assert found[0].tolist() == [0, 1, 0] and found[1, 1] == 0 and found.sum() == 2
    (gradient,) = torch.autograd.grad((found * torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).sum(), weights)
    assert gradient.tolist() == [[1, 2, 3], [4, 5, 6]]


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_nearest_token_has_the_greatest_cosine_of_those_allowed(seed: int) -> None:
    embeddings, table = drawn(seed, 3, 4), drawn(seed + 1, 9, 4)
    allowed = torch.arange(9) % 2 == 0
    found = nearest_tokens(embeddings, table, allowed).tolist()
    for row, token in zip(embeddings, found, strict=True):
        cosines = [float(row @ other / row.norm() / other.norm()) for other in table]
        assert token % 2 == 0 and cosines[token] == pytest.approx(max(cosines[::2]))
    assert nearest_tokens(table, table).tolist() == list(range(9))


def test_a_straight_through_embedding_is_the_tokens_own_and_moves_the_soft_one() -> None:
    table = torch.eye(3)
    soft = torch.tensor([[0.1, 0.9, 0.0]], requires_grad=True)
    found = straight_through(soft, table, torch.tensor([1]))
    assert found.tolist() == [[0, 1, 0]]
    (gradient,) = torch.autograd.grad((found * torch.tensor([[1.0, 2.0, 3.0]])).sum(), soft)
    assert gradient.tolist() == [[1, 2, 3]]


def test_exchanges_are_the_best_allowed_and_change_one_token_each() -> None:
    gains = torch.tensor([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 3.0, 4.0]])
    allowed = torch.tensor([True, False, True, True])
    tokens = torch.tensor([0, 3])
    choices = best_exchanges(gains, tokens, allowed, 2)
    assert choices.tolist() == [[2, 3], [2, 0]]
    tried = exchange_one(tokens, choices, 10, torch.Generator().manual_seed(0))
    assert sorted(tried.tolist()) == [[0, 0], [0, 2], [2, 3], [3, 3]]


@given(SEEDS, st.integers(2, 8), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_children_are_of_their_parents_position_by_position(seed: int, count: int, length: int) -> None:
    first = torch.arange(count * length).reshape(count, length)
    second = first + 1000
    children = cross_over(first, second, 1.0, torch.Generator().manual_seed(seed))
    assert ((children == first) | (children == second)).all()
    of_second = (children == second).int()
    assert (of_second.diff(dim=1) >= 0).all() and (of_second[:, 0] == 0).all() and (of_second[:, -1] == 1).all()
    assert torch.equal(cross_over(first, second, 0.0, torch.Generator().manual_seed(seed)), first)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_a_mutation_changes_one_token_at_most_and_to_one_of_the_pool(seed: int) -> None:
    population, pool = torch.zeros(6, 5, dtype=torch.long), torch.tensor([7, 8])
    mutated = mutate(population, 1.0, pool, torch.Generator().manual_seed(seed))
    assert ((mutated != 0).sum(1) == 1).all() and set(mutated.unique().tolist()) <= {0, 7, 8}
    assert torch.equal(mutate(population, 0.0, pool, torch.Generator().manual_seed(seed)), population)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_fitter_half_lives_on_and_the_best_is_never_lost(seed: int) -> None:
    population = torch.arange(40).reshape(8, 5)
    fitness = drawn(seed, 8)
    after = next_generation(population, fitness, 0.5, 0.25, torch.tensor([99]), torch.Generator().manual_seed(seed))
    fitter = population[fitness.topk(4).indices]
    assert after.shape == population.shape and torch.equal(after[:4], fitter)
    assert set(after[4:].flatten().tolist()) <= {*fitter.flatten().tolist(), 99}
