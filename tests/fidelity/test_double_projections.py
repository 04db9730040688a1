"""Double Projections against a least squares in the left null space, and what it promises to leave."""

from typing import Any

import numpy as np
import pytest
import torch
from written_out import ANIMALS, BIRD, CAT, assert_same, last, projections

from efface.concepts.concept import Concept
from efface.models.base import Base
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods.double_projections import DoubleProjections


def solve(base: Base, *concepts: Concept, **config: Any) -> dict[str, torch.Tensor]:
    method = DoubleProjections(parse_config("double-projections", config))
    return method.solve(UnlearningTask(base, concepts, ANIMALS, seed=0))


def keys(base: Base, *prompts: str) -> np.ndarray:
    return np.stack([last(base, prompt) for prompt in prompts])


KEPT = ("a good dog", "some fish", "a sky")


def test_preserved_keys_and_anchors_keep_their_values_to_1e_6(tiny_base: Base) -> None:
    kept = keys(tiny_base, *KEPT)
    for safe in ("guide", "preserved"):
        solved = solve(tiny_base, CAT, BIRD, safe=safe)
        for name, old in projections(tiny_base, "to_k", "to_v").items():
            moved = (solved[name].double().numpy() - old) @ kept.T
            assert np.abs(moved).max() < 1e-6 * max(1, np.abs(old @ kept.T).max())
            assert np.abs(solved[name].double().numpy() - old).max() > 1e-3


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_change_is_the_least_squares_in_the_left_null_space_of_what_stays(ridge: float, tiny_base: Base) -> None:
    concepts, guides = keys(tiny_base, "a cat", "a bird"), keys(tiny_base, "a good dog", "a sky")
    proxies = np.stack([g * (c @ g) / (g @ g) for c, g in zip(concepts, guides, strict=True)])
    null = np.linalg.svd(keys(tiny_base, *KEPT))[2][len(KEPT) :]
    expected = {}
    for name, old in projections(tiny_base, "to_k", "to_v").items():
        design = np.concatenate([concepts @ null.T, np.sqrt(ridge) * np.eye(len(null))])
        wanted = np.concatenate([(proxies - concepts) @ old.T, np.zeros((len(null), len(old)))])
        expected[name] = old + np.linalg.lstsq(design, wanted, rcond=None)[0].T @ null
    assert_same(solve(tiny_base, CAT, BIRD, ridge=ridge), expected)


def test_with_the_preserved_span_as_safe_subspace_the_unexplained_part_is_cut_out(tiny_base: Base) -> None:
    concepts = keys(tiny_base, "a cat", "a bird")
    kept = np.linalg.svd(keys(tiny_base, *KEPT), full_matrices=False)[2]
    unexplained = np.linalg.svd(concepts - concepts @ kept.T @ kept, full_matrices=False)[2]
    cut = np.eye(concepts.shape[1]) - unexplained.T @ unexplained
    expected = {name: old @ cut for name, old in projections(tiny_base, "to_k", "to_v").items()}
    assert_same(solve(tiny_base, CAT, BIRD, safe="preserved"), expected)


def test_a_concept_gets_the_values_of_its_proxy(tiny_base: Base) -> None:
    cat, dog = last(tiny_base, "a cat"), last(tiny_base, "a good dog")
    solved = solve(tiny_base, CAT)
    for name, old in projections(tiny_base, "to_k", "to_v").items():
        expected = old @ dog * (cat @ dog) / (dog @ dog)
        np.testing.assert_allclose(solved[name].double().numpy() @ cat, expected, atol=1e-5)
