"""Three optimiser steps of FADE are those of the authors' script, on the same model, noise, steps and first adapters.

docs/fidelity.md says how its numbers were recorded.
"""

from typing import Any

import torch

from efface.concepts.concept import ConceptSet
from efface.models.base import Base
from efface.models.denoiser import Denoiser
from efface.train.data.rollouts import Start
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods.fade import FADE
from efface.train.trainer.loop import train
from tests.fidelity.authors_code import assert_same_steps, noted_gradients, recorded


class StartedAlike(FADE):
    """With the authors' first adapters, noises and stops."""

    found = recorded("fade")

    def add_adapters(self, student: Denoiser, seed: int) -> None:
        super().add_adapters(student, seed)
        for name, adapter in self.adapters.layers.items():
            adapter.down.data = self.found[f"start/{theirs(name)}"].clone()

    def draw(self, index: int) -> tuple[int, Start]:
        return 0, Start(self.found[f"noise/{index}"], int(self.found["stops"][index]))


def theirs(layer: str) -> str:
    """`unet.mid_block.…to_k` in the authors' checkpoints."""
    return "lora_" + layer.replace(".", "_")


def test_the_preset_authors_is_their_blue_jay(recorded_base: Base, authors_concepts: ConceptSet) -> None:
    small: dict[str, Any] = {"steps": 3, "batch_size": 1}
    method = StartedAlike(parse_config("fade", small, "authors"))
    task = UnlearningTask(recorded_base, (authors_concepts.find("Blue Jay"),), authors_concepts, seed=0)
    with noted_gradients() as gradients:
        trained = train(method, task)

    torch.testing.assert_close(torch.tensor(trained.losses), method.found["losses"], rtol=1e-4, atol=0)
    layers = list(method.adapters.layers)
    assert {f"up/{theirs(name)}" for name in layers} == {name for name in method.found if name.startswith("up/")}
    ups = {f"{name}.up": method.found[f"up/{theirs(name)}"] for name in layers}
    optimised = {name: value for name, value in trained.tensors.items() if not name.endswith(".alpha")}
    assert_same_steps(optimised, {name: torch.zeros_like(up) for name, up in ups.items()}, ups, gradients)
    for name in layers:
        # the first step has a rate of 0 and up starts at 0, so down moves once, by a few of its last bits
        change = trained.tensors[f"{name}.down"] - method.found[f"start/{theirs(name)}"]
        torch.testing.assert_close(change, method.found[f"down/{theirs(name)}"], rtol=0, atol=6e-8)
