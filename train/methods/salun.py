"""SalUn: Saliency Unlearning (Fan et al., ICLR 2024, arXiv 2310.12508).

    L = || eps_theta(x_t, c) - sg[ eps_theta(x_t, c') ] ||^2  +  alpha || eps_theta(y_t, c_r) - eps ||^2

x are images of the concept and c its prompt, c' is the prompt of another concept (here the anchor); y are images that
must stay, c_r their own prompts. theta is the model being edited, on both sides. Only the salient half of all weights
is trained (`select: gradient`): those of the largest gradient of

    - || (1 + s) eps_theta(x_t, c) - s eps_theta(x_t, 0) - eps ||^2,   s = 7.5

summed over the images of the concept before the first step.

The images are the base's own, as the authors do for nudity (800 of each, one epoch, alpha 0.1); for classes they take
photographs, the next class as c', and the other nine as y (preset `objects`). Both predictions of the first term are of
the same latents; the authors draw from the VAE's posterior anew for the second.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.captions import has_phrase_once
from efface.train.data.latents import ImageConfig, Noised, Posterior, image_posterior, noised
from efface.train.data.score_distance import AnchoredConfig
from efface.train.method import GradientConfig, GradientMethod, Policy, Strategy, UnlearningTask, register
from efface.train.method_cost import BaseImages, Cost
from efface.train.seeds import generator, shuffled


class SalUnConfig(GradientConfig, ImageConfig, AnchoredConfig):
    """SalUn as its authors remove nudity: one epoch over 800 images, in batches of 8, alpha 0.1."""

    group: Literal["full", "xattn", "kv-xattn", "noxattn"] = Field(
        "full", description="what is trained, as far as it is salient; authors: everything, or the cross-attention"
    )
    steps: int = Field(100, ge=1, description="optimiser steps; authors 800 images / 8, classes 5 epochs")
    learning_rate: float = Field(1e-5, gt=0, description="of Adam; authors 1e-5")
    batch_size: int = Field(8, ge=1, description="images to forget, and as many to keep, of one batch; authors 8")
    alpha: float = Field(0.1, ge=0, description="weight of the second term; authors: nudity 0.1, classes 0.5")
    select: Literal["all", "gradient", "importance"] = Field(
        "gradient", description="entries of the weights that are trained; paper: those of the largest gradient"
    )
    select_batches: int = Field(100, ge=1, description="batches whose gradients are summed; authors: one epoch")
    saliency_guidance: float = Field(7.5, ge=0, description="s of the saliency's loss; authors 7.5")
    template: str = Field("a photo of {}", description="prompt of an image, {} for the concept's phrase; authors: this")
    pseudo: str | None = Field(None, min_length=1, description="c' in place of the concept's anchor")
    remain: Literal["anchor", "retained"] | tuple[str, ...] = Field(
        "anchor",
        description="y: images of c' (authors, nudity), of the retained concepts (classes), or these prompts'",
    )
    images: int = Field(800, ge=1, description="images of a concept to forget; authors 800")
    remain_images: int = Field(800, ge=1, description="images that must stay, over all their prompts; authors 800")

    @field_validator("template")
    @classmethod
    def _one_place(cls, template: str) -> str:
        if not has_phrase_once(template):
            raise ValueError("should hold '{}' once, the place of the concept, and no other brace")
        return template

    @model_validator(mode="after")
    def _maps_to_one_thing(self) -> "SalUnConfig":
        if self.pseudo and self.map_to == "nearest":
            raise ValueError("map_to: nearest should be without pseudo, which takes the anchor's place")
        return self


@dataclass(frozen=True)
class SalUnBatch:
    """B images to forget, and B that must stay."""

    forget: Noised
    concept: Conditioning  # B rows
    target: Tensor  # (B, 4, h, w): the student's own prediction of `forget` for the other concept
    remain: Noised
    kept: Conditioning  # B rows


@dataclass(frozen=True)
class Data:
    """One concept's images and prompts; one row each, of `remain_rows` one for each image to keep, in turns."""

    forget: Posterior
    concept: Conditioning
    pseudo: Conditioning
    remain: Posterior
    remain_rows: Conditioning


@register("salun")
class SalUn(GradientMethod):
    """Saliency Unlearning: gives the concept another's prediction, by the salient half of all weights."""

    Config = SalUnConfig
    config: SalUnConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    policy: ClassVar[Policy] = "none"
    packs: ClassVar[bool] = True

    @property
    def group(self) -> str:
        return self.config.group

    def cost(self, shapes: ModelShapes) -> Cost:
        rows, config = self.config.batch_size, self.config
        recipe = config.image_recipe(shapes.image_size)
        images = BaseImages(recipe, per_concept=config.images + config.remain_images, encoded=True)
        return Cost(trained_rows=2 * rows, frozen_rows=rows, mean_frozen_rows=rows, images=images)

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        self.seed, self.student = task.seed, student
        self.scheduler = DDPMScheduler.from_config(task.base.scheduler_config)
        self.uncond = encode_prompts(task.base, [""])
        self.data = [self._data(task, concept) for concept in task.concepts]

    def batch(self, index: int) -> SalUnBatch:
        """Of one concept, all of them in turns."""
        turn, data = self._turn(index)
        rows = self.config.batch_size
        forget, _ = self._images(data.forget, "forget", index, turn)
        remain, chosen = self._images(data.remain, "remain", index, turn)
        target = self.student(forget.latents, forget.timesteps, data.pseudo.expand(rows))
        kept = data.remain_rows[[image % len(data.remain_rows) for image in chosen]]
        return SalUnBatch(forget, data.concept.expand(rows), target, remain, kept)

    def loss(self, student: NoisePredictor, batch: SalUnBatch) -> Tensor:
        # one forward pass of both: DistributedDataParallel synchronises gradients once a pass
        latents, timesteps = (
            torch.cat([getattr(part, name) for part in (batch.forget, batch.remain)])
            for name in ("latents", "timesteps")
        )
        predicted = student(latents, timesteps, Conditioning.cat([batch.concept, batch.kept]))
        forgotten, kept = predicted.chunk(2)
        return mse_loss(forgotten, batch.target) + self.config.alpha * mse_loss(kept, batch.remain.truth)

    def selection_loss(self, student: NoisePredictor, index: int) -> Tensor:
        turn, data = self._turn(index)
        forget, _ = self._images(data.forget, "saliency", index, turn)
        conditions = Conditioning.cat([one.expand(len(forget.latents)) for one in (data.concept, self.uncond)])
        predicted = student(forget.latents.repeat(2, 1, 1, 1), forget.timesteps.repeat(2), conditions)
        concept, uncond = predicted.chunk(2)
        return saliency_loss(concept, uncond, forget.truth, self.config.saliency_guidance)

    def _turn(self, index: int) -> tuple[int, Data]:
        turn, concept = divmod(index, len(self.data))
        return turn, self.data[concept]

    def _images(self, images: Posterior, purpose: str, index: int, turn: int) -> tuple[Noised, list[int]]:
        """A batch of images, each of them once in a round; and which they are."""
        count, rows = len(images.mean), self.config.batch_size
        chosen = [shuffled(count, turn * rows + row, self.seed, "salun", purpose) for row in range(rows)]
        return noised(images, chosen, self.scheduler, generator(self.seed, "salun", purpose, index)), chosen

    def _data(self, task: UnlearningTask, concept: Concept) -> Data:
        config, base = self.config, task.base
        pseudo = config.pseudo or task.concept_set.anchor_phrase(concept)
        if not pseudo:
            raise UserError(f"salun: concept '{concept.name}' has no anchor, should have one, or name it as pseudo")
        prompt, other = (config.template.format(phrase) for phrase in (concept.phrase, pseudo))
        kept = [other] if config.remain == "anchor" else self._kept(task, concept)
        recipe = config.image_recipe(base.spec.image_size)
        prompts = [kept[number % len(kept)] for number in range(config.remain_images)]
        return Data(
            forget=image_posterior(base, recipe, [prompt] * config.images, task.cache),
            concept=encode_prompts(base, [prompt]),
            pseudo=encode_prompts(base, [other]),
            remain=image_posterior(base, recipe, prompts, task.cache),
            remain_rows=encode_prompts(base, kept),
        )

    def _kept(self, task: UnlearningTask, concept: Concept) -> list[str]:
        if isinstance(self.config.remain, tuple):
            return list(self.config.remain)
        kept = task.retained(concept)
        if not kept:
            raise UserError(f"salun finds no retained concept beside '{concept.name}': list prompts as remain")
        return [self.config.template.format(other.phrase) for other in kept]


def saliency_loss(concept: Tensor, uncond: Tensor, truth: Tensor, guidance: float) -> Tensor:
    """- || (1 + s) concept - s uncond - truth ||^2, the mean over elements; all (B, 4, h, w)."""
    return -mse_loss((1 + guidance) * concept - guidance * uncond, truth)
