"""FADE: Fine-grained Attenuation for Diffusion Erasure (Thakral et al., CVPR 2025).

    L = l_er L_er + l_adj L_adj + l_guid L_guid

    L_er   = max(0, mean_A d(eps_M^tar, eps^a) - mean_U d(eps_M^tar, eps^u) + delta)
    L_adj  = mean_A || eps_M^a - eps^a ||^2
    L_guid = || eps_M^tar - eps^null ||^2

eps is the frozen base; eps_M is the same with rank-1 adapters on all linear layers of the transformer blocks;
they alone are trained. tar is the concept to forget, A its neighbours, U the target in three sentences. Each
prompt has its own latents, all from the same noise, partially denoised by eps_M with guidance 3 to one
random step (on-policy). The target's prediction is pulled to the empty prompt's and to the neighbours', away
from its own old ones; the neighbours' predictions stay.

`mode: code` is the authors' implementation: d is the norm over image rows only, not squared, neighbours and sentences
are summed, five against three, so the hinge is practically never at rest. `mode: paper` has squared norms (per element,
as in the other two terms) and means. The 8-bit states of the authors' AdamW are not reproduced.

Several concepts: one, drawn uniformly, for each batch. In a chain a new adapter is stacked on those of the requests
before, which are part of the frozen model then.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from efface.concepts.concept import Concept
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import encode_prompts
from efface.train.adapter_method import AdapterConfig, AdapterMethod
from efface.train.data.captions import has_phrase_once
from efface.train.data.conditions import without_article
from efface.train.data.neighbours import NeighbourConfig, Prompts, neighbour_phrases
from efface.train.data.rollouts import Rollouts, Start, TrajectoryConfig, authors_timestep, rollout_rows
from efface.train.data.shared_rollouts import SharedRolloutConfig, SharedRollouts
from efface.train.fade_losses import LOSSES
from efface.train.method import UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.seeds import generator, integer, normal


class FADEConfig(AdapterConfig, TrajectoryConfig, SharedRolloutConfig, NeighbourConfig):
    steps: int = Field(500, ge=1, description="optimiser steps; authors: 500")
    learning_rate: float = Field(1e-4, gt=0, description="learning rate; authors: 1e-4")
    batch_size: int = Field(4, ge=1, description="noises a step, each denoised under every prompt; authors: 4")
    warmup_steps: int = Field(500, ge=0, description="steps in which the rate rises; authors: all 500, from 0/500")
    mode: Literal["code", "paper"] = Field("code", description="the losses as the authors run or print them")
    erase_weight: float = Field(3.0, ge=0, description="l_er; authors, blue jay: 3 (their default: 2)")
    adjacent_weight: float = Field(50.0, ge=0, description="l_adj; authors, blue jay: 50 (default: 1000)")
    guidance_weight: float = Field(1000.0, ge=0, description="l_guid; authors, blue jay: 1000 (default: 100)")
    margin: float = Field(1.0, ge=0, description="delta of L_er; authors: 1")
    prompt: str = Field("{}", description="prompt of target and neighbours; '{}': the bare concept, as authors")
    sentences: Prompts = Field(
        ("A photo of a {}", "A photo of many {}", "A photo of more than two {}"),
        description="U, further prompts of the target; authors: these",
    )
    rollout_steps: int = Field(30, ge=2, le=1000, description="DDIM steps of a full trajectory; authors: 30")
    sizes: Annotated[tuple[int, ...], Field(min_length=1)] | None = Field(
        (256, 320, 384, 448), description="pixels; height and width are drawn of these (authors'); null: the base's own"
    )
    timestep_offset: int | None = Field(
        None, ge=0, le=1, description="added to every timestep of DDIM; authors 0; null: as the base says, SD v1.4 1"
    )
    authors_timestep: bool = Field(
        False, description="predict at the authors' timestep, some 40 of 1000 noisier than the latents, not their own"
    )

    @field_validator("prompt", "sentences")
    @classmethod
    def _has_one_placeholder(cls, value: Any) -> Any:
        if not all(map(has_phrase_once, [value] if isinstance(value, str) else value)):
            raise ValueError("every prompt should hold '{}' once, the place of the concept, and no other brace")
        return value


@dataclass(frozen=True)
class FADEBatch:
    """One step's data: K neighbours, J sentences, n noises; latents (4, h, w)."""

    latents: Tensor  # of the target, then of each neighbour: ((1 + K) n, 4, h, w)
    timestep: Tensor
    conditioning: Conditioning  # (1 + K) n rows
    null: Tensor  # the base's prediction at the target's latents for the empty prompt: (n, 4, h, w)
    neighbours: Tensor  # the base's predictions at the neighbours' own latents: (K, n, 4, h, w)
    sentences: Tensor  # the base's predictions at the sentences' own latents: (J, n, 4, h, w)


@register("fade")
class FADE(AdapterMethod):
    """Small adapters that carry a concept to its neighbours and to nothing, and hold the neighbours still."""

    Config = FADEConfig
    config: FADEConfig
    strategies = frozenset({"single", "multi", "continual"})
    policy = "on"
    packs = True
    delta_kind = "adapter"

    def cost(self, shapes: ModelShapes) -> Cost:
        config, neighbours = self.config, self.config.most_neighbours
        prompts = 1 + len(config.sentences) + neighbours
        largest, mean = rollout_rows(config, rollouts=prompts, first=1)
        return Cost(
            trained_rows=config.batch_size * (1 + neighbours),
            frozen_rows=largest,
            mean_frozen_rows=mean + config.batch_size * prompts,
            latent_sizes=tuple(side // shapes.pixels_per_latent for side in config.sizes or (shapes.image_size,)),
            images=config.neighbour_images(shapes),
        )

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        config, base = self.config, task.base
        self.seed, self.student, self.teacher = task.seed, student, base.denoiser
        # per concept: target, sentences, neighbours; 1 + J + K rows
        self.prompts = [encode_prompts(base, self.texts(concept, task)) for concept in task.concepts]
        self.stops = range(1, config.rollout_steps)
        self.rollouts = Rollouts(base, config, None, config.sizes, offset=config.timestep_offset)
        self.shared = SharedRollouts(config, task.seed)

    def texts(self, concept: Concept, task: UnlearningTask) -> list[str]:
        """The prompts of one concept to forget: itself, its sentences, its neighbours."""
        own = [text.format(without_article(concept.phrase)) for text in (self.config.prompt, *self.config.sentences)]
        return [*own, *self.neighbours(concept, task)]

    def neighbours(self, concept: Concept, task: UnlearningTask) -> list[str]:
        """The prompts of the concept's neighbours."""
        if isinstance(self.config.neighbours, tuple):
            return list(self.config.neighbours)
        phrases = neighbour_phrases(task, concept, self.config)
        return [self.config.prompt.format(without_article(phrase)) for phrase in phrases]

    def draw(self, index: int) -> tuple[int, Start]:
        """What is random in a step: the concept, and where all its trajectories start and first stop."""
        rng = generator(self.seed, "fade", self.shared.source(index))
        concept, stop = integer(len(self.prompts), rng), self.stops[integer(len(self.stops), rng)]
        height, width = (self.rollouts.sides[integer(len(self.rollouts.sides), rng)] for _ in "hw")
        shape = (self.config.batch_size, self.rollouts.channels, height, width)
        return concept, Start(normal(shape, rng, self.prompts[0].device), stop, self.stops)

    def batch(self, index: int) -> FADEBatch:
        config, (concept, start) = self.config, self.draw(index)
        prompts, n = self.prompts[concept], config.batch_size
        count, others = len(prompts), 1 + len(config.sentences)
        # all prompts share noise and step, so all their trajectories are one batch, prompt by prompt
        rows, starts = prompts.repeat_interleave(n), start.repeated(count)
        state, stop = self.rollouts.shared(self.shared, index, self.student, starts, rows)
        if config.authors_timestep:
            state = state.at(authors_timestep(stop, config.rollout_steps))
        latents, timestep = state.latents, state.timestep
        empty = self.rollouts.uncond
        frozen = self.teacher(latents, timestep, Conditioning.cat([empty, prompts[1:]]).repeat_interleave(n))
        frozen = frozen.unflatten(0, (count, n))
        trained = [0, *range(others, count)]
        return FADEBatch(
            latents.unflatten(0, (count, n))[trained].flatten(0, 1),
            timestep,
            prompts[trained].repeat_interleave(n),
            null=frozen[0],
            neighbours=frozen[others:],
            sentences=frozen[1:others],
        )

    def state(self) -> dict[str, Tensor]:
        return self.shared.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.shared.restore(state, self.rollouts.uncond.device)

    def loss(self, student: NoisePredictor, batch: FADEBatch) -> Tensor:
        config, (erase_loss, adjacent_loss) = self.config, LOSSES[self.config.mode]
        predicted = student(batch.latents, batch.timestep, batch.conditioning).unflatten(0, (-1, len(batch.null)))
        target, adjacent = predicted[0], predicted[1:]
        return (
            config.erase_weight * erase_loss(target, batch.neighbours, batch.sentences, config.margin)
            + config.adjacent_weight * adjacent_loss(adjacent, batch.neighbours)
            + config.guidance_weight * F.mse_loss(target, batch.null)
        )
