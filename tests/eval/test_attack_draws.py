"""What attacks draw and what they say they found: noise of its own, and prompts only of text that reads back."""

from typing import Any

import pytest
import torch

from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet
from efface.eval.attack import ATTACKS, parse_attack_config
from efface.eval.attack_target import attack_target
from efface.eval.attacking.token_attempt import token_attempt
from efface.eval.attacks import noise_scale
from efface.eval.oracle import Budget, Instance, Oracle
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample

RECIPE = Recipe(name="t", scheduler="ddim", steps=2, guidance_scale=1, height=16, width=16, batch_size=1)
CAT = Instance("a cat", 5)
QUICK: dict[str, dict[str, Any]] = {
    "unlearn-diff-atk": {"tokens": 2, "timesteps": 1, "iterations": 1},
    "p4d": {"tokens": 2, "steps": 1},
    "gcg": {"tokens": 2, "steps": 1, "states": 1, "top_k": 4, "candidates": 2},
}


@pytest.fixture
def oracle(tiny_base: Base) -> Oracle:
    return Oracle(tiny_base, None, RECIPE, Budget(1000))


@pytest.mark.parametrize("name", QUICK)
def test_the_images_of_an_attack_are_not_noised_with_what_they_began_with(
    name: str, oracle: Oracle, world: ConceptSet, prompts: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []
    noised = oracle.noised
    monkeypatch.setattr(oracle, "noised", lambda x, t, noise: (drawn.extend(noise), noised(x, t, noise))[1])
    attack = ATTACKS.get(name)(oracle.base, parse_attack_config(name, QUICK[name]))
    attack.prepare(oracle, attack_target(world.find("Cat"), world, prompts), 0)
    next(attack.attempts(oracle, CAT))
    assert drawn and not any(torch.equal(noise, oracle.noise(CAT.seed)[0]) for noise in drawn)


def test_gcg_takes_no_exchange_that_is_worse(oracle: Oracle, world: ConceptSet, prompts: PromptSet) -> None:
    """With one exchange tried a step, about every other one is worse."""
    config = parse_attack_config("gcg", {**QUICK["gcg"], "steps": 6, "candidates": 1, "test_every": 1})
    attack = ATTACKS.get("gcg")(oracle.base, config)
    attack.prepare(oracle, attack_target(world.find("Cat"), world, prompts), 0)
    losses = [attempt.facts["loss"] for attempt in attack.attempts(oracle, CAT)]
    assert len(losses) == 6 and losses == sorted(losses, reverse=True)


def test_the_probe_adds_other_noise_than_an_image_begins_with(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    step = noise_scale.ddim_step

    def recorded(x_t: torch.Tensor, *given: Any) -> torch.Tensor:
        steps.append((x_t, given[-1]))
        return step(x_t, *given)

    monkeypatch.setattr(noise_scale, "ddim_step", recorded)
    config = parse_attack_config("noise-scale", {"etas": [1.0], "scales": [1.0]})
    next(ATTACKS.get("noise-scale")(oracle.base, config).attempts(oracle, CAT))
    start, added = steps[0]
    assert torch.equal(start, oracle.noise(CAT.seed)) and not torch.equal(added, start)


def test_tokens_whose_text_reads_back_are_a_prompt_with_its_very_image(oracle: Oracle) -> None:
    tokens = torch.tensor(oracle.base.tokenizer("fog", add_special_tokens=False).input_ids)
    for behind, text in (("", "fog"), ("a cat", "fog a cat")):
        attempt = token_attempt(oracle, tokens, CAT, behind)
        assert (attempt.how, attempt.prompt) == ("prompt", text)
        assert (attempt.images == sample(oracle.base, RECIPE, [ImageRequest(text, CAT.seed)])).all()


def test_tokens_whose_text_is_read_otherwise_are_no_prompt(oracle: Oracle) -> None:
    vocabulary = oracle.base.tokenizer.get_vocab()
    within = torch.tensor([vocabulary["f"]])  # within a word; a word by itself ends in another token
    attempt = token_attempt(oracle, within, CAT)
    assert (attempt.how, attempt.prompt, attempt.facts) == ("embedding", None, {"read_as": "f"})
