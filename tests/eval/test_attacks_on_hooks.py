"""Attacks on models that a sampler hook makes forget: what is attacked is the hook at work, not the base under it."""

from typing import Any

import numpy as np
import pytest

from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet
from efface.eval.attack import ATTACKS, Attack, parse_attack_config
from efface.eval.attack_target import attack_target
from efface.eval.oracle import Attempt, Budget, Instance, Oracle
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.hooks.adavd import AdaVD
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample

RECIPE = Recipe(name="t", scheduler="ddim", steps=4, guidance_scale=5.0, height=16, width=16, batch_size=1)
BARELY = {"images": 1, "steps": 1, "batch_size": 1, "tests": 1, "learning_rate": 1e-30}
"""Relearning that leaves every weight as it is."""


def hooked(base: Base, name: str, **config: Any) -> Delta:
    settings = {"prompts": ["van gogh"], **config}
    return Delta("hook", {}, {"base_id": base.fingerprint, "hook": {"name": name, "config": settings}})


def attempts(
    name: str, config: dict[str, Any], base: Base, delta: Delta | None, world: ConceptSet, prompts: PromptSet
) -> tuple[Attack, list[Attempt]]:
    base.swap(delta)
    oracle = Oracle(base, delta, RECIPE, Budget(1000))
    attack = ATTACKS.get(name)(base, parse_attack_config(name, config))
    attack.prepare(oracle, attack_target(world.find("Cat"), world, prompts), 0)
    return attack, list(attack.attempts(oracle, Instance("a cat", 0)))


@pytest.mark.parametrize(
    ("name", "config"),
    [("adavd", {"centre": 0.5}), ("sld", {"warm_up": 0, "threshold": 1.0}), ("safree", {"slope": 0.2})],
)
def test_a_student_that_learnt_nothing_makes_the_image_of_the_hook(
    name: str, config: dict[str, Any], tiny_base: Base, world: ConceptSet, prompts: PromptSet
) -> None:
    plain = sample(tiny_base, RECIPE, [ImageRequest("a cat", 0)])
    delta = hooked(tiny_base, name, **config)
    _, (attempt,) = attempts("relearning", BARELY, tiny_base, delta, world, prompts)
    expected = sample(tiny_base, RECIPE, [ImageRequest("a cat", 0)])
    assert not np.array_equal(expected, plain)
    assert np.array_equal(attempt.images, expected)


def test_relearning_trains_with_the_hook(
    tiny_base: Base, world: ConceptSet, prompts: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    attached = AdaVD.attached
    monkeypatch.setattr(AdaVD, "attached", lambda hook, denoiser: (seen.append(denoiser), attached(hook, denoiser))[1])
    attack, made = attempts("relearning", BARELY, tiny_base, hooked(tiny_base, "adavd"), world, prompts)
    assert seen.count(attack.student) == 1 + len(made)  # type: ignore[attr-defined]


def test_a_hook_that_warms_up_counts_the_steps_that_the_base_made(
    tiny_base: Base, world: ConceptSet, prompts: PromptSet
) -> None:
    def image(delta: Delta | None) -> np.ndarray:
        _, (attempt,) = attempts("completion", {"shares": [0.5]}, tiny_base, delta, world, prompts)
        return attempt.images

    warm = hooked(tiny_base, "sld", threshold=1.0, warm_up=2)  # as long as the base draws: 2 of 4 steps
    at_once = hooked(tiny_base, "sld", threshold=1.0, warm_up=0)
    assert np.array_equal(image(warm), image(at_once))
    assert not np.array_equal(image(warm), image(None))
