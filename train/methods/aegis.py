"""AEGIS (ICLR 2026, arXiv 2602.06771), re-implemented from its formulas: its authors' code is not public.

    min_theta max_c'  || eps_theta(x_t, c) - [ eps*(x_t, 0) - eta (eps*(x_t, c') - eps*(x_t, 0)) ] ||^2
                      + lambda / 2 || theta - theta_0 ||^2

ESD (`esd.py`) away from what is worst to be away from: c' is the concept's prompt behind an adversary's token, which
takes one step along the sign of the first term's gradient before every step of the weights. theta* and theta_0 are the
frozen original, in a chain the model of the request before.

Where the gradient g of the first term goes against that of the second, h = lambda (theta - theta_0), the part that does
so is taken out of it, by a share omega that rises from 0 to 1:

    g <- g - omega <g, h> / ||h||^2  h     where <g, h> < 0

The sum of both gradients is then g + (1 + omega max(0, -<g, h>) / ||h||^2) h: the second term with another weight; so
it is computed. What the formulas leave open is ours: lambda, the token's rate and start, and that omega rises linearly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.adversary import Adversary, restore_all, states_of
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.models.text.embedding_space import check_family, embedding_table
from efface.models.text.textual_inversion import frame_before
from efface.train.data.rollouts import State
from efface.train.method import UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.methods.esd import ESD, ESDConfig, Rollout
from efface.train.seeds import generator, integer

Variant = Literal["x", "u", "x-strict", "selfattn", "full", "notime", "xlayer", "selflayer", "esd-u", "esd-all"]


class AEGISConfig(ESDConfig):
    """What the paper says: 1000 steps of Adam at 1e-5 on the UNet, in batches of one."""

    variant: Variant = Field("full", description="what is trained, by ESD's names; paper: the UNet")
    distance_weight: float = Field(1e-3, ge=0, description="lambda, of half the squared change; not published")
    adversary_rate: float = Field(1e-3, ge=0, description="length of the adversary's steps; not published")
    conflict: bool = Field(
        True, description="take out of the first term's gradient what goes against the second's; paper: yes"
    )


@dataclass(frozen=True)
class AEGISBatch:
    rollout: Rollout
    omega: float


@register("aegis")
class AEGIS(ESD):
    """A re-implementation of AEGIS: away from an adversary's version of the concept, and not far from the start."""

    Config = AEGISConfig
    config: AEGISConfig
    packs: ClassVar[bool] = False  # the adversary asks the student for gradients of its own

    def cost(self, shapes: ModelShapes) -> Cost:
        one = super().cost(shapes)
        rows, frozen = self.config.batch_size, one.mean_frozen_rows
        # the adversary's state is a roll-out of its own; a second way back through the student weighs the terms
        return replace(one, mean_frozen_rows=2 * frozen + 3 * rows, mean_search_rows=2 * rows)

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        check_family(task.base)
        super().prepare(task, student)
        self.base, self.student = task.base, student
        self.weights = [(value, value.detach().clone()) for value in self.trained(student).values()]
        table = embedding_table(task.base)
        self.frames = [frame_before(task.base, 1, text) for text in self.texts]
        self.adversaries = {}
        for number in range(len(self.texts)):
            token = integer(len(table), generator(task.seed, "aegis", number))
            self.adversaries[str(number)] = Adversary(table[token][None], self.config.adversary_rate, rule="sign")

    def before_step(self, step: int) -> None:
        """The adversary's step, at the first state of the step."""
        index = step * self.config.gradient_accumulation_steps
        number, _ = self.draw(index)
        with torch.no_grad():
            rollout = super().batch(index)
            predicted = self.student(rollout.latents, rollout.timestep, rollout.conditioning)
        target = self.target(State(rollout.latents, rollout.timestep), self.adversarial(number))
        self.adversaries[str(number)].maximize(mse_loss(target, predicted))

    def batch(self, index: int) -> AEGISBatch:  # type: ignore[override]
        rollout, (number, _) = super().batch(index), self.draw(index)
        target = self.target(State(rollout.latents, rollout.timestep), self.adversarial(number))
        step = index // self.config.gradient_accumulation_steps
        return AEGISBatch(replace(rollout, target=target), step / max(1, self.config.steps - 1))

    def loss(self, student: NoisePredictor, batch: AEGISBatch) -> Tensor:  # type: ignore[override]
        erase, config = super().loss(student, batch.rollout), self.config
        away = [value - start for value, start in self.weights]
        distance = config.distance_weight / 2 * torch.stack([each.square().sum() for each in away]).sum()
        if not config.conflict or config.distance_weight == 0:
            return erase + distance
        gradients = torch.autograd.grad(erase, [value for value, _ in self.weights], retain_graph=True)
        with torch.no_grad():
            pulls = [config.distance_weight * each for each in away]
            more = batch.omega * counterweight(gradients, pulls)
        return erase + distance + more * (distance - distance.detach())  # the value is that of both terms

    def adversarial(self, number: int) -> Conditioning:
        """c' of a prompt, one row."""
        return self.frames[number].encode(self.base, self.adversaries[str(number)].value)

    def state(self) -> dict[str, Tensor]:
        return states_of(self.adversaries)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        restore_all(self.adversaries, state)


def counterweight(gradients: list[Tensor] | tuple[Tensor, ...], pulls: list[Tensor]) -> Tensor:
    """max(0, -<g, h>) / ||h||^2, of all tensors together: how much of h takes out of g what goes against it."""
    along = torch.stack([(g * h).sum() for g, h in zip(gradients, pulls, strict=True)]).sum()
    square = torch.stack([h.square().sum() for h in pulls]).sum()
    return torch.where(square > 0, (-along).clamp(min=0) / square.clamp(min=torch.finfo(square.dtype).tiny), 0.0)
