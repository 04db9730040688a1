"""STEREO: Adversarially Robust Concept Erasing in two stages (Srivatsan et al., CVPR 2025, arXiv 2408.16807).

Search thoroughly enough (`train/stereo_search.py`), in rounds, each on the model of the one before, the first on the
original:

    erase      ESD (`esd.py`) of the concept, in later rounds of the token found last
    find       textual inversion on the erased model: a token v_i that still means the concept's images

Robustly erase once, from the original again: for a negative n among N = {c, v_1, …} and a caption a that has c in it

    L = || eps_theta(x_t, n) - [ eps*(x_t, 0) + s+ (eps*(x_t, a) - eps*(x_t, 0))
                                 - s- mean over m in N of (eps*(x_t, m) - eps*(x_t, 0)) ] ||^2

so that what else is in such captions stays. Each n, and each a, is shown once in a round of them. x_t comes from a
partial denoising under n by the model being edited, guidance 3. theta* is the original; in a chain, the model before.

Both stages are one job, whose steps are those of the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.models.text.embedding_space import check_family
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.captions import captions, has_phrase_once
from efface.train.data.rollouts import RolloutConfig, Rollouts, State, predictions, rollout_rows
from efface.train.data.timesteps import selected_stops
from efface.train.method import GradientMethod, Policy, Strategy, UnlearningTask, register
from efface.train.method_cost import BaseImages, Cost
from efface.train.methods.esd import ESD, ESDConfig
from efface.train.seeds import generator, shuffled
from efface.train.stereo_search import TokenRoundsConfig, search
from efface.train.trainer.loop import train

ESD_VARIANTS = {"noxattn": "u", "xattn": "x", "kv-xattn": "x-strict", "full": "full"}
"""By the trained group."""


class STEREOConfig(RolloutConfig, TokenRoundsConfig):
    """STEREO as its authors run it: four rounds of 200 steps and an inversion, then 200 steps."""

    group: Literal["noxattn", "xattn", "kv-xattn", "full"] = Field(
        "noxattn", description="what is trained, in both stages; authors: all but cross-attention, time and output"
    )
    search_steps: int = Field(200, ge=1, description="optimiser steps of ESD in a round of the search; authors 200")
    search_learning_rate: float = Field(5e-6, gt=0, description="of AdamW there; authors 5e-6")
    search_eta: float = Field(
        0.0,
        ge=0,
        description="ESD's eta there; authors 0: their guidance of 2 goes from the concept to the empty prompt",
    )
    steps: int = Field(200, ge=1, description="optimiser steps of the second stage; authors 200")
    learning_rate: float = Field(2e-5, gt=0, description="of AdamW there; authors 2e-5")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="torch.optim's; authors AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW; authors 0.01")
    positive_scale: float = Field(1.0, ge=0, description="s+; authors 1")
    negative_scale: float = Field(3.0, ge=0, description="s-; authors 3: their scale of -2, less one like the other's")
    anchors: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="captions a, with '{}' where the concept's phrase is; null: the built-in ones; authors about 200",
    )

    @field_validator("anchors")
    @classmethod
    def _one_place(cls, anchors: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if not all(has_phrase_once(anchor) for anchor in anchors or ()):
            raise ValueError("should hold '{}' once each, the place of the concept, and no other brace")
        return anchors


@dataclass(frozen=True)
class STEREOBatch:
    state: State
    conditioning: Conditioning  # of the negative, B rows
    target: Tensor  # (B, 4, h, w)


class EncodedESD(ESD):
    """ESD of something that has an encoding, and need not be words."""

    def __init__(self, config: ESDConfig, encoded: Conditioning) -> None:
        super().__init__(config)
        self.encoded = encoded

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        super().prepare(task, student)
        self.prompts = self.encoded


@register("stereo")
class STEREO(GradientMethod):
    """Looks for tokens that bring the concept back, erasing each as it is found, and erases all of them at once."""

    Config = STEREOConfig
    config: STEREOConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "continual"})
    policy: ClassVar[Policy] = "on"

    @property
    def group(self) -> str:
        return self.config.group

    def cost(self, shapes: ModelShapes) -> Cost:
        config, (largest, mean) = self.config, rollout_rows(self.config)
        rows, teacher = config.batch_size, config.batch_size * (3 + config.rounds)
        erasing, finding = (config.rounds * n / config.steps for n in (config.search_steps, config.inversion_steps))
        return Cost(
            trained_rows=rows,
            frozen_rows=max(largest, teacher),
            # the first stage counts as spread over the steps of the second
            mean_frozen_rows=mean + teacher + erasing * (mean + 2 * rows),
            mean_search_rows=erasing * rows + finding,
            images=BaseImages(config.image_recipe(shapes.image_size), per_concept=config.images, encoded=True),
        )

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        check_family(task.base)
        base, config, (concept,) = task.base, self.config, task.concepts
        self.seed, self.student, self.teacher = task.seed, student, base.denoiser
        if config.anchors:
            texts = [anchor.format(concept.phrase) for anchor in config.anchors]
        else:
            texts = [each.target for each in captions(concept, task.concept_set, {}, 200)]
        self.anchors = encode_prompts(base, texts)
        decides = [base.state_id, concept.model_dump(mode="json"), config.model_dump(mode="json"), task.seed]
        found = search(task, config, self.erased, decides)
        self.negatives = Conditioning.cat([encode_prompts(base, [concept.phrase]), *found])
        self.rollouts = Rollouts(base, config, selected_stops(task, config, config.rollout_steps))

    def erased(self, task: UnlearningTask, encoded: Conditioning, turn: int) -> Denoiser:
        """The model of a task's base after ESD of an encoding, one row."""
        config = self.config
        shared = {name: getattr(config, name) for name in RolloutConfig.model_fields if name not in ("steps", "select")}
        own = {
            "variant": ESD_VARIANTS[config.group],
            "steps": config.search_steps,
            "learning_rate": config.search_learning_rate,
            "eta": config.search_eta,
        }
        method = EncodedESD(ESDConfig(**{**shared, **own}), encoded)
        # what is cached is of the original, and the base here is the model of a round
        alone = replace(task, seed=task.seed + turn, cache=None, rollouts=None)
        trained = train(method, alone).tensors
        student = task.base.denoiser.copy()
        changed = method.trained(student)
        student.own(changed.values())
        with torch.no_grad():
            for name, value in changed.items():
                value.copy_(trained[name])
        return student

    def batch(self, index: int) -> STEREOBatch:
        config, negatives, anchors = self.config, self.negatives, self.anchors
        negative = negatives[shuffled(len(negatives), index, self.seed, "stereo", "negatives")]
        anchor = anchors[shuffled(len(anchors), index, self.seed, "stereo", "anchors")]
        state = self.rollouts.run(self.student, self.rollouts.start(generator(self.seed, "stereo", index)), negative)
        uncond, positive, *away = predictions(self.teacher, state, [self.rollouts.uncond, anchor, *negatives])
        target = compositional_target(uncond, positive, away, config.positive_scale, config.negative_scale)
        return STEREOBatch(state, negative.expand(len(target)), target)

    def loss(self, student: NoisePredictor, batch: STEREOBatch) -> Tensor:
        return mse_loss(student(batch.state.latents, batch.state.timestep, batch.conditioning), batch.target)


def compositional_target(
    uncond: Tensor, positive: Tensor, negatives: Sequence[Tensor], positive_scale: float, negative_scale: float
) -> Tensor:
    """`uncond` with the direction of the positive, and against the mean of the negatives' directions."""
    away = torch.stack([negative - uncond for negative in negatives]).mean(dim=0)
    return uncond + positive_scale * (positive - uncond) - negative_scale * away
