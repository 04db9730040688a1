"""OCE: its matrix written out from the derivation, its rotation by polar decomposition, what a rotation promises."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from written_out import ANIMALS, BIRD, CAT, assert_same, encode, last, projections

from efface.concepts.concept import Concept
from efface.models.base import Base
from efface.train.closed_form import nearest_rotation
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods.oce import OCE

CAPTIONS = ("a harbour", "two red horses at dawn", "x")
SCALES = {"erase_scale": 3.0, "preserve_scale": 0.2, "general_scale": 0.5, "ridge": 0.1}


def solve(base: Base, *concepts: Concept, **config: Any) -> dict[str, torch.Tensor]:
    settings = {"general_captions": CAPTIONS, **SCALES, **config}
    return OCE(parse_config("oce", settings)).solve(UnlearningTask(base, concepts, ANIMALS, seed=0))


def onto(vectors: list[np.ndarray]) -> np.ndarray:
    """The projector on the span of independent vectors, V (V^T V)^-1 V^T."""
    v = np.stack(vectors, axis=1)
    return v @ np.linalg.inv(v.T @ v) @ v.T


def matrix(base: Base, old: np.ndarray, erase_term: str) -> np.ndarray:
    tokens = np.concatenate([embedding[: index + 2] for embedding, index in (encode(base, text) for text in CAPTIONS)])
    concepts = onto([old @ last(base, text) for text in ("a cat", "a bird")])
    away = np.eye(len(old)) - onto([old @ last(base, text) for text in ("a good dog", "a sky")])
    erase = away @ concepts if erase_term == "derived" else concepts @ away
    total = -3.0 * erase + 0.5 * old @ (tokens.T @ tokens / len(tokens)) @ old.T + 0.1 * old @ old.T
    for text in ("a good dog", "some fish"):
        value = old @ last(base, text)
        total += 0.2 * np.outer(value, value)
    return total


@pytest.mark.parametrize("erase_term", ["derived", "code"])
def test_the_rotation_is_the_orthogonal_factor_of_the_matrix(erase_term: str, tiny_base: Base) -> None:
    expected = {}
    for name, old in projections(tiny_base, "to_v").items():
        values = np.linalg.qr(old)[0]  # a basis of all values: with more outputs than inputs, M is 0 outside of it
        m = values.T @ matrix(tiny_base, old, erase_term) @ values
        squared, vectors = np.linalg.eigh(m.T @ m)  # M (M^T M)^(-1/2) is the nearest orthogonal matrix
        q = m @ vectors @ np.diag(squared**-0.5) @ vectors.T
        if len(q) == len(old) and np.linalg.det(q) < 0:  # then the smallest stretch is turned the other way round
            q = q - 2 * np.outer(q @ vectors[:, 0], vectors[:, 0])
        expected[name] = values @ q @ values.T @ old
    assert_same(solve(tiny_base, CAT, BIRD, erase_term=erase_term), expected)


def test_weights_are_turned_and_nothing_else(tiny_base: Base) -> None:
    for name, old in projections(tiny_base, "to_v").items():
        new = solve(tiny_base, CAT)[name].double().numpy()
        np.testing.assert_allclose(new.T @ new, old.T @ old, atol=1e-5)  # of W and Q W, if Q is orthogonal
        assert np.abs(new - old).max() > 1e-2


@pytest.mark.parametrize("sign", [1, -1])
def test_the_nearest_rotation_is_orthogonal_of_determinant_one_and_no_other_is_nearer(sign: int) -> None:
    rng = np.random.default_rng(0)
    m = rng.normal(size=(3, 3))
    m[0] *= sign * np.sign(np.linalg.det(m))  # of either determinant
    q = nearest_rotation(torch.from_numpy(m)).numpy()
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-12)
    assert np.linalg.det(q) == pytest.approx(1)
    for _ in range(2000):
        other = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        other[:, 0] *= np.sign(np.linalg.det(other))
        assert (other * m).sum() <= (q * m).sum() + 1e-12


def test_the_erase_term_is_what_a_rotation_leaves_of_the_concept_outside_its_anchors(tiny_base: Base) -> None:
    rng = np.random.default_rng(0)
    concepts, anchors = (np.linalg.qr(rng.normal(size=(6, 2)))[0].T for _ in range(2))
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    method = OCE(parse_config("oce", {"erase_term": "derived"}))
    term = method.erase(torch.from_numpy(concepts), torch.from_numpy(anchors)).numpy()
    left = sum((np.eye(6) - anchors.T @ anchors) @ q @ np.outer(e, e) for e in concepts)
    assert (q * term).sum() == pytest.approx(np.trace(left))


def test_a_larger_scale_turns_a_concept_further(tiny_base: Base) -> None:
    def kept(scale: float) -> list[float]:
        solved = solve(tiny_base, CAT, erase_scale=scale)
        cat = last(tiny_base, "a cat")
        return [
            float((old @ cat) @ (solved[name].double().numpy() @ cat) / np.square(old @ cat).sum())
            for name, old in projections(tiny_base, "to_v").items()
        ]

    rising = [kept(scale) for scale in (1e-3, 0.3, 3.0, 30.0)]
    for before, after in pairwise(rising):
        assert all(new < old for old, new in zip(before, after, strict=True))
    assert all(value > 0.99 for value in rising[0])


def test_anchors_named_twice_span_what_they_span_once(tiny_base: Base) -> None:
    """Without a rank, rounding would give the second naming a direction of its own."""
    method = OCE(parse_config("oce", {**SCALES, "guide": "a sky", "general_captions": CAPTIONS, "preserve": "none"}))
    both = method.solve(UnlearningTask(tiny_base, (CAT, BIRD), ANIMALS, seed=0))
    for name, old in projections(tiny_base, "to_v").items():
        concepts = onto([old @ last(tiny_base, text) for text in ("a cat", "a bird")])
        anchor = onto([old @ last(tiny_base, "a sky")])
        tokens = np.concatenate([e[: i + 2] for e, i in (encode(tiny_base, text) for text in CAPTIONS)])
        m = -3.0 * concepts @ (np.eye(len(old)) - anchor) + 0.1 * old @ old.T
        m += 0.5 * old @ (tokens.T @ tokens / len(tokens)) @ old.T
        q = nearest_rotation(torch.from_numpy(m)).numpy()
        np.testing.assert_allclose(both[name].numpy(), q @ old, atol=1e-5)
