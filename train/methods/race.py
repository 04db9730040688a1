"""RACE: Robust Adversarial Concept Erase (Kim et al., ECCV 2024, arXiv 2405.16341).

    L = || eps_theta(x_t, c + d) - [ eps*(x_t, 0) - eta (eps*(x_t, c) - eps*(x_t, 0)) ] ||^2

    d = argmin || eps_theta(x_t, c + d) - x_T ||^2,   |d| <= r in every number

ESD (`esd.py`) for the concept as an adversary puts it: its encoding is moved within a small box so that the model being
edited predicts the noise x_T from which it has denoised x_t, by projected gradient descent from a random point of the
box, anew for every batch. Values stay between the least and the largest of the encoding, as in the authors' code.

It begins where ESD has ended: the first `clean_steps` are ESD's, without an adversary. The authors' `--lasso` is
`near_start: l1`.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.adversary import Adversary, within
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.shapes import ModelShapes
from efface.train.method import UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.methods.esd import ESD, ESDConfig, Rollout
from efface.train.seeds import generator, uniform


class RACEConfig(ESDConfig):
    """RACE as its authors run it: 1000 steps after 1000 of ESD."""

    steps: int = Field(2000, ge=1, description="optimiser steps, ESD's among them; authors 1000 of each")
    clean_steps: int = Field(1000, ge=0, description="the first of them, which are ESD's; authors 1000")
    adversary_steps: int = Field(10, ge=0, description="of projected gradient descent, for each batch; authors 10")
    adversary_radius: float = Field(
        0.1, ge=0, description="r, the most by which a number of the encoding may move; authors 0.1"
    )
    adversary_rate: float = Field(0.025, ge=0, description="length of one of these steps; authors a quarter of r")

    @model_validator(mode="after")
    def _an_adversary_comes(self) -> "RACEConfig":
        if self.clean_steps >= self.steps:
            raise ValueError(f"clean_steps should be less than steps, {self.steps}, so that the adversary comes at all")
        return self


@register("race")
class RACE(ESD):
    """Robust Adversarial Concept Erase: ESD for whatever an adversary finds around the concept's encoding."""

    Config = RACEConfig
    config: RACEConfig
    packs: ClassVar[bool] = False  # the adversary asks the student for gradients of its own

    def cost(self, shapes: ModelShapes) -> Cost:
        config = self.config
        searched = config.batch_size * config.gradient_accumulation_steps * config.adversary_steps
        return replace(super().cost(shapes), mean_search_rows=searched * (1 - config.clean_steps / config.steps))

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        super().prepare(task, student)
        self.student = student

    def batch(self, index: int) -> Rollout:
        rollout, config = super().batch(index), self.config
        if index < config.clean_steps * config.gradient_accumulation_steps:
            return rollout
        _, start = self.draw(index)
        return replace(rollout, conditioning=self.attacked(rollout, start.noise, index))

    def attacked(self, rollout: Rollout, noise: Tensor, index: int) -> Conditioning:
        """The roll-out's conditioning as the adversary has it; noise: x_T, (B, 4, h, w)."""
        radius, rows = self.config.adversary_radius, rollout.conditioning
        own = rows.encoder_hidden_states
        box = within(own, radius, float(own.min()), float(own.max()))
        drawn = uniform(tuple(own.shape), generator(self.seed, "race", index)).to(own.device)
        adversary = Adversary(box(own + radius * (2 * drawn - 1)), self.config.adversary_rate, rule="sign", project=box)
        for _ in range(self.config.adversary_steps):
            with torch.enable_grad():
                conditioning = Conditioning(adversary.value, rows.added)
                adversary.minimize(mse_loss(self.student(rollout.latents, rollout.timestep, conditioning), noise))
        return Conditioning(adversary.value.detach(), rows.added)
