"""Three optimiser steps of ESD are those of the authors' newer script, on the same model, noise and steps.

docs/fidelity.md says how its numbers were recorded.
"""

import json
from typing import Any

import pytest
import torch

from efface.concepts.concept import ConceptSet
from efface.models.base import Base
from efface.models.parameter_groups import select
from efface.train.data.rollouts import Start
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods.esd import ESD
from efface.train.trainer.loop import train
from tests.fidelity.authors_code import assert_same_steps, noted_gradients, recorded, recorded_facts

# twice the model's own images, as 1024 px are for Stable Diffusion; recorded in fp32
SMALL = {"steps": 3, "size": 128, "precision": "fp32"}


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("x", {}),
        ("from", {"erase_from": "a painting", "eta": 2}),
        pytest.param("u", {"variant": "esd-u"}, marks=pytest.mark.slow),
        pytest.param("all", {"variant": "esd-all"}, marks=pytest.mark.slow),
    ],
)
def test_the_preset_authors_is_their_newer_script(
    case: str, config: dict[str, Any], recorded_base: Base, authors_concepts: ConceptSet, monkeypatch: Any
) -> None:
    found = {name.removeprefix(f"{case}/"): value for name, value in recorded("esd").items() if name.startswith(case)}
    method = ESD(parse_config("esd", {**SMALL, **config}, "authors"))
    starts = [Start(noise, int(stop)) for noise, stop in zip(found["noise"], found["stops"], strict=True)]
    monkeypatch.setattr(method, "draw", lambda index: (0, starts[index]))
    task = UnlearningTask(recorded_base, (authors_concepts.find("Van Gogh"),), authors_concepts, seed=0)
    with noted_gradients() as gradients:
        trained = train(method, task)

    torch.testing.assert_close(torch.tensor(trained.losses), found["losses"], rtol=1e-4, atol=0)
    expected = {name.removeprefix("change/"): value for name, value in found.items() if name.startswith("change/")}
    assert_same_steps(trained.tensors, recorded_base.tensors(), expected, gradients)


@pytest.mark.parametrize("variant", ["esd-u", "esd-all"])
def test_the_newer_scripts_groups_are_its_own(variant: str, recorded_base: Base) -> None:
    names = json.loads(recorded_facts("esd")[f"{variant.removeprefix('esd-')}/names"])
    assert sorted(select(recorded_base, ESD(parse_config("esd", {"variant": variant})).group)) == names
