"""SPM: One-Dimensional Adapter to Rule Them All (Lyu et al., CVPR 2024, arXiv 2312.16145).

    L = || eps_M(x_t, c) - [ eps*(x_t, 0) - g (eps*(x_t, c) - eps*(x_t, 0)) ] ||^2
        + lambda || eps_M(x_t, r) - eps*(x_t, r) ||^2

eps* is the frozen base; eps_M is the same with rank-1 adapters ("membranes") on all linear layers and convolutions of
the transformer blocks; they alone are trained. x_t comes from a partial denoising by eps_M under c, guidance 3
(on-policy). r are *latent anchors*, Gaussian embeddings rescaled to the norm of c's times a number in [0.8, 1.2]: what
is not the concept stays. (The authors draw one again with probability cos(r, c), in so many dimensions next to never.)

`anchors: code` is what the authors run: of every two anchors one is the empty prompt, since a batch of pairs is halved
at another place than it was joined. `anchors: paper` has Gaussian ones alone.

`transport: static` leaves adapters that act on every prompt alike, and that can be merged into the weights, exported
and stacked. `facilitated` is the authors': adapters are weighed by how near a prompt is to the concept when an image is
made (`models/hooks/spm.py`). Their AdamW keeps 8-bit states, which saves memory.

`multi` trains one adapter, with one concept drawn for every batch; the authors train one for each and add them up, as a
chain of requests does here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.errors import UserError
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.hooks.spm import SPMHookConfig, SPMHookSettings
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.train.adapter_method import AdapterConfig, AdapterMethod
from efface.train.data.conditions import ConditionConfig, Conditions, without_article
from efface.train.data.rollouts import RolloutConfig, Rollouts, State, authors_timestep, predictions, rollout_rows
from efface.train.data.shared_rollouts import SharedRolloutConfig, SharedRollouts
from efface.train.data.timesteps import selected_stops
from efface.train.method import UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.negative_guidance import esd_target
from efface.train.seeds import generator, normal

SCALES = (0.8, 1.2)  # of an anchor's norm to the concept's


class SPMConfig(AdapterConfig, RolloutConfig, SharedRolloutConfig, ConditionConfig, SPMHookSettings):
    """SPM as its authors run it: 3000 steps of AdamW, three cosines after a warm-up."""

    steps: int = Field(3000, ge=1, description="optimiser steps; authors 3000")
    learning_rate: float = Field(1e-4, gt=0, description="learning rate; authors 1e-4")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="the learning rate after the warm-up; authors: cosine"
    )
    schedule_cycles: int = Field(3, ge=1, description="times the cosine starts again; authors 3")
    warmup_steps: int = Field(500, ge=0, description="steps in which the rate rises; authors 500")
    rollout_steps: int = Field(30, ge=2, le=1000, description="DDIM steps of a whole trajectory; authors 30")
    transport: Literal["static", "facilitated"] = Field(
        "static", description="the adapters as weights for every prompt, or as strong as a prompt asks for (authors)"
    )
    eta: float = Field(1.0, ge=0, description="g, strength of the negative guidance; authors 1")
    anchor_weight: float = Field(1000.0, ge=0, description="lambda, of the latent anchors; authors 1000")
    anchor_count: int = Field(4, ge=2, multiple_of=2, description="anchors of one state; authors 4")
    anchors: Literal["code", "paper"] = Field("code", description="half of them the empty prompt, or none")
    sizes: Annotated[tuple[int, ...], Field(min_length=1)] | None = Field(
        (256, 320, 384, 448),
        description="pixels; height and width are drawn of these; authors: these; null: the base's own size",
    )
    authors_timestep: bool = Field(
        False,
        description="predict at the authors' timestep, 33 to 42 noisier than the latents are; false: at their own",
    )


@dataclass(frozen=True)
class SPMBatch:
    """A state of the adapted model's trajectory; B latents."""

    state: State
    concept: Conditioning  # B rows
    target: Tensor  # (B, 4, h, w)
    anchors: Conditioning  # count B rows
    originals: Tensor  # (count B, 4, h, w): the base's predictions for the anchors


@register("spm")
class SPM(AdapterMethod):
    """Concept Semi-Permeable Membrane: rank-1 adapters that block a concept and let all else through."""

    Config = SPMConfig
    config: SPMConfig
    strategies = frozenset({"single", "multi", "continual"})
    policy = "on"
    packs = True

    def __init__(self, config: SPMConfig) -> None:
        super().__init__(config)
        self.delta_kind = "adapter" if config.transport == "static" else "hook"

    def cost(self, shapes: ModelShapes) -> Cost:
        config, rows = self.config, self.config.batch_size
        largest, mean = rollout_rows(config, first=1)
        anchors = config.anchor_count if config.anchor_weight > 0 else 0
        return Cost(
            trained_rows=rows * (1 + anchors),
            frozen_rows=max(largest, rows * (2 + anchors)),
            mean_frozen_rows=mean + rows * (2 + anchors),
            latent_sizes=tuple(side // shapes.pixels_per_latent for side in config.sizes or (shapes.image_size,)),
            images=config.selection_images(shapes),
        )

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        if task.erased and self.delta_kind == "hook":
            raise UserError("spm: transport: facilitated changes no weight to go on from, should be static in a chain")
        self.seed, self.student, self.teacher = task.seed, student, task.base.denoiser
        self.conditions = Conditions(task.base, task.concepts, self.config)
        stops = selected_stops(task, self.config, self.config.rollout_steps, first=1)
        self.rollouts = Rollouts(task.base, self.config, stops, self.config.sizes)
        self.shared = SharedRollouts(self.config, task.seed)

    def batch(self, index: int) -> SPMBatch:
        config, rng = self.config, generator(self.seed, "spm", self.shared.source(index))
        number = self.conditions.number(rng)
        concept = self.conditions.of(number, rng)
        start = self.rollouts.start(rng, number)
        state, stop = self.rollouts.shared(self.shared, index, self.student, start, concept)
        if config.authors_timestep:
            state = state.at(authors_timestep(stop, config.rollout_steps))
        anchors = self._anchors(concept, rng)
        conditions = [concept, self.rollouts.uncond, *anchors]
        own, uncond, *originals = predictions(self.teacher, state, conditions)
        target = esd_target(uncond, own, uncond, config.eta)
        rows = len(start.noise)
        joined = [anchor.expand(rows) for anchor in anchors]
        return SPMBatch(
            state,
            concept.expand(rows),
            target,
            Conditioning.cat(joined) if joined else concept[0:0],
            torch.cat(originals) if originals else target[0:0],
        )

    def loss(self, student: NoisePredictor, batch: SPMBatch) -> Tensor:
        rows = len(batch.target)
        repeats = 1 + len(batch.anchors) // rows
        together = Conditioning.cat([batch.concept, batch.anchors])
        predicted = student(batch.state.latents.repeat(repeats, 1, 1, 1), batch.state.timestep, together)
        loss = mse_loss(predicted[:rows], batch.target)
        if repeats == 1:
            return loss
        return loss + self.config.anchor_weight * mse_loss(predicted[rows:], batch.originals)

    def _anchors(self, concept: Conditioning, rng: torch.Generator) -> list[Conditioning]:
        """The conditions that are to stay, one row each."""
        count = self.config.anchor_count if self.config.anchor_weight > 0 else 0
        gaussian = count // 2 if self.config.anchors == "code" else count
        drawn = [latent_anchor(concept, rng) for _ in range(gaussian)]
        return [*[self.rollouts.uncond] * (count - gaussian), *drawn]

    def state(self) -> dict[str, Tensor]:
        return self.shared.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.shared.restore(state, self.rollouts.uncond.device)

    def hook_config(self, task: UnlearningTask) -> SPMHookConfig:
        names = tuple(without_article(concept.phrase) for concept in task.concepts)
        return SPMHookConfig(prompts=names, power=self.config.power)


def latent_anchor(concept: Conditioning, rng: torch.Generator) -> Conditioning:
    """A Gaussian embedding of the shape of one row's, whose norm is the row's times a number in [0.8, 1.2]."""
    row = concept.encoder_hidden_states
    noise = normal(tuple(row.shape), rng, row.device)
    low, high = SCALES
    scale = low + (high - low) * float(torch.rand((), generator=rng))
    return Conditioning(noise / noise.norm() * row.norm() * scale, concept.added)
