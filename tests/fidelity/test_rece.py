"""RECE against the authors' loop, written out layer by layer and token by token with explicit inverses."""

from typing import Any

import numpy as np
import pytest
import torch
from written_out import ANIMALS, BIRD, CAT, assert_same, encode, projections

from efface.concepts.concept import Concept
from efface.models.base import Base
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods.rece import RECE, attack_map
from efface.train.methods.uce import UCE

ATTACK_RIDGE, REFINE_RIDGE, ERASE, PRESERVE = 0.05, 0.2, 0.8, 0.3
REFINE = {
    "attack_ridge": ATTACK_RIDGE,
    "refine_ridge": REFINE_RIDGE,
    "refine_erase_scale": ERASE,
    "refine_preserve_scale": PRESERVE,
}


def solve(base: Base, *concepts: Concept, **config: Any) -> dict[str, torch.Tensor]:
    return RECE(parse_config("rece", config)).solve(UnlearningTask(base, concepts, ANIMALS, seed=0))


def attacked(edited: dict[str, np.ndarray], originals: dict[str, np.ndarray], prompt: np.ndarray) -> np.ndarray:
    """The embedding whose edited keys and values are nearest to the prompt's original ones, by least squares."""
    width = prompt.shape[1]
    stacked = np.concatenate([*edited.values(), np.sqrt(ATTACK_RIDGE) * np.eye(width)])
    wanted = np.concatenate([*(prompt @ old.T for old in originals.values()), np.zeros((len(prompt), width))], axis=1)
    return np.linalg.lstsq(stacked, wanted.T, rcond=None)[0].T


def refined(weight: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]], kept: list[np.ndarray]) -> np.ndarray:
    left, right = REFINE_RIDGE * weight, REFINE_RIDGE * np.eye(weight.shape[1])
    for embedding, guide in pairs:
        for c, target in zip(embedding, guide, strict=True):
            left, right = left + ERASE * np.outer(weight @ target, c), right + ERASE * np.outer(c, c)
    for embedding in kept:
        for c in embedding:
            left, right = left + PRESERVE * np.outer(weight @ c, c), right + PRESERVE * np.outer(c, c)
    return left @ np.linalg.inv(right)


@pytest.mark.parametrize(("epochs", "tokens"), [(1, "all"), (2, "all"), (1, "last-subject")])
def test_every_epoch_attacks_the_edited_layers_and_erases_what_it_finds(
    epochs: int, tokens: str, tiny_base: Base
) -> None:
    originals = projections(tiny_base, "to_k", "to_v")
    task = UnlearningTask(tiny_base, (CAT, BIRD), ANIMALS, seed=0)
    uce = UCE(parse_config("uce", {"tokens": tokens, "preserve_scale": None})).solve(task)
    edited = {name: value.double().numpy() for name, value in uce.items()}
    prompts = [
        (encode(tiny_base, text)[0], encode(tiny_base, to)[0])
        for text, to in (("a cat", "a good dog"), ("a bird", "a sky"))
    ]
    kept = [encode(tiny_base, text)[0] for text in ("", "a good dog", "some fish")]
    for _ in range(epochs):
        pairs = [(attacked(edited, originals, prompt), guide) for prompt, guide in prompts]
        edited = {name: refined(weight, pairs, kept) for name, weight in edited.items()}
    solved = solve(tiny_base, CAT, BIRD, epochs=epochs, tokens=tokens, **REFINE)
    assert solved.keys() == edited.keys()
    for name, value in solved.items():  # UCE's weights above were rounded to fp32 before the epochs
        np.testing.assert_allclose(value.numpy(), edited[name], rtol=1e-3, atol=2e-5)


def test_without_an_epoch_it_is_uce(tiny_base: Base) -> None:
    task = UnlearningTask(tiny_base, (CAT,), ANIMALS, seed=0)
    uce = UCE(parse_config("uce", {"tokens": "all", "preserve_scale": None})).solve(task)
    assert_same(solve(tiny_base, CAT, epochs=0), {name: value.double().numpy() for name, value in uce.items()})


def test_the_attack_on_an_unedited_model_finds_the_concept_itself() -> None:
    weight = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(attack_map(weight.T @ weight, identity, 1e-12), identity)


def test_the_erased_attack_reproduces_the_concept_less_than_before(tiny_base: Base) -> None:
    """What an attack finds after the epoch is farther from the concept's own values than what it found before."""
    originals = projections(tiny_base, "to_k", "to_v")
    cat, index = encode(tiny_base, "a cat")

    def distance(epochs: int) -> float:
        solved = solve(tiny_base, CAT, epochs=epochs, preserve="none", **REFINE)
        edited = {name: value.double().numpy() for name, value in solved.items()}
        found = attacked(edited, originals, cat)[index:]
        return float(sum(((found @ edited[name].T - cat[index:] @ originals[name].T) ** 2).sum() for name in edited))

    assert distance(1) > distance(0)
