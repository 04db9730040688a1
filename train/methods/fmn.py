"""FMN: Forget-Me-Not (Zhang et al., CVPRW 2024, arXiv 2303.17591), attention re-steering.

    L = || [ A_l[:, :, p] : layers l, positions p of the concept ] ||_F

A_l are the probabilities of cross-attention l of the model being edited, for noised images of the concept under a
prompt that names it; p are the positions of its tokens and, with `pooler`, of the end-of-text token, which holds the
meaning of the whole prompt. So the concept's tokens are attended to by nothing, and attention goes elsewhere.

The norm is taken over the batch as a whole, as in the authors' code, and is no mean over its samples.

With `inversion_steps` the concept is named by learnt tokens instead of its words: a textual inversion of the images, in
the unedited model (`train/data/learnt_tokens.py`), so that what it looks like is forgotten and not what it is called.

The images are the base's own where the authors have photographs. The loss does not look at the prediction: weights
behind the last cross-attention get a gradient of zero, where the authors' optimiser passes them over.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.models.adversary import Adversary
from efface.models.attention_maps import CrossAttentionMaps
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import encode_prompts, subject_tokens
from efface.models.text.textual_inversion import frame_after
from efface.train.data.conditions import without_article
from efface.train.data.latents import ImageConfig, Noised, Posterior, add_noise, image_posterior, noised
from efface.train.data.learnt_tokens import NORM_SHARE, InversionConfig, initial_tokens, invert
from efface.train.method import GradientConfig, GradientMethod, Policy, Strategy, UnlearningTask, register
from efface.train.method_cost import BaseImages, Cost
from efface.train.seeds import generator, shuffled


class FMNConfig(GradientConfig, ImageConfig, InversionConfig):
    """FMN as its authors run it: 35 steps on eight images."""

    group: Literal["full", "xattn"] = Field(
        "full", description="what is trained: everything (authors), or the cross-attention (only_optimize_ca)"
    )
    steps: int = Field(35, ge=1, description="optimiser steps; authors 35")
    learning_rate: float = Field(2e-6, gt=0, description="learning rate; authors 2e-6")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="torch.optim's; authors AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW; authors 0.01")
    max_grad_norm: float = Field(1.0, ge=0, description="global L2 norm of the gradient; authors 1, 0: no clipping")
    pooler: Literal["none", "eos", "all"] = Field(
        "all",
        description="end-of-text tokens that count as the concept: none, the first, or its copies in the padding "
        "too, as in the authors' code with SD 1.x (with SD 2.1, which pads otherwise, it has the first alone)",
    )
    images: int = Field(8, ge=0, description="images of a concept; authors about 8 photographs, 0: noise alone")


TEMPLATES: dict[str, str] = {"style": "a photo in the style of"}
"""By the concept's kind; else "a photo of"."""


@dataclass(frozen=True)
class FMNBatch:
    """Noised images, and where in their prompts the concept stands. B samples."""

    latents: Tensor  # (B, 4, h, w)
    timesteps: Tensor  # (B,), int64
    conditioning: Conditioning  # B rows
    concept: Tensor  # (B, tokens), bool


@dataclass(frozen=True)
class Data:
    """One concept's images, and its prompt."""

    images: Posterior | None  # None: noise alone
    conditioning: Conditioning  # one row
    positions: Tensor  # (1, tokens), bool


@register("fmn")
class FMN(GradientMethod):
    """Forget-Me-Not: steers all attention away from the concept's tokens."""

    Config = FMNConfig
    config: FMNConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    policy: ClassVar[Policy] = "none"

    @property
    def group(self) -> str:
        return self.config.group

    def cost(self, shapes: ModelShapes) -> Cost:
        recipe = self.config.image_recipe(shapes.image_size)
        images = BaseImages(recipe, per_concept=self.config.images, encoded=True)
        return Cost(trained_rows=self.config.batch_size, images=images if self.config.images else None)

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        self.seed = task.seed
        self.scheduler = DDPMScheduler.from_config(task.base.scheduler_config)
        self.shape = task.base.latent_shape
        self.maps = CrossAttentionMaps(student)
        self.data = [self._data(task, concept) for concept in task.concepts]

    def batch(self, index: int) -> FMNBatch:
        """Images of all concepts in turns, each of a concept's shown once in a round."""
        count, rng = self.config.batch_size, generator(self.seed, "fmn", index)
        turns = [divmod(position, len(self.data)) for position in range(index * count, (index + 1) * count)]
        data = [self.data[concept] for _, concept in turns]
        samples = [self._noised(one, turn, concept, rng) for one, (turn, concept) in zip(data, turns, strict=True)]
        return FMNBatch(
            torch.cat([sample.latents for sample in samples]),
            torch.cat([sample.timesteps for sample in samples]),
            Conditioning.cat([one.conditioning for one in data]),
            torch.cat([one.positions for one in data]),
        )

    def loss(self, student: NoisePredictor, batch: FMNBatch) -> Tensor:
        with self.maps:
            predicted = student(batch.latents, batch.timesteps, batch.conditioning)
        # every trained weight gets a gradient, if of zero, as optimisers and process groups expect
        return resteering_loss(list(self.maps.by_layer.values()), batch.concept) + 0.0 * predicted.sum()

    def _noised(self, data: Data, turn: int, concept: int, rng: torch.Generator) -> Noised:
        if data.images is None:
            return add_noise(torch.zeros(1, *self.shape, device=data.positions.device), self.scheduler, rng)
        chosen = shuffled(self.config.images, turn, self.seed, "fmn", concept)
        return noised(data.images, [chosen], self.scheduler, rng)

    def _data(self, task: UnlearningTask, concept: Concept) -> Data:
        config, base, template = self.config, task.base, TEMPLATES.get(concept.kind, "a photo of")
        name = concept.name if concept.kind == "style" else without_article(concept.phrase)
        prompt = f"{template} {name if concept.kind == 'style' else concept.phrase}"
        images = None
        if config.images:
            recipe = config.image_recipe(base.spec.image_size)
            images = image_posterior(base, recipe, [prompt] * config.images, task.cache)
        if images and config.inversion_steps:
            conditioning, found = self._inverted(task, images, template, name)
        else:
            conditioning, found = encode_prompts(base, [prompt]), subject_tokens(base, prompt, name)
        if not found:
            raise UserError(f"fmn finds no words of '{concept.name}' in the prompt '{prompt}', as the base reads it")
        positions = torch.zeros(1, conditioning.encoder_hidden_states.shape[1], dtype=torch.bool)
        positions[0, found] = True
        end = found[-1] + 1  # the concept ends the prompt
        positions[0, end : {"none": end, "eos": end + 1, "all": None}[config.pooler]] = True
        return Data(images, conditioning, positions.to(base.device))

    def _inverted(
        self, task: UnlearningTask, images: Posterior, template: str, name: str
    ) -> tuple[Conditioning, list[int]]:
        """The prompt with learnt tokens in place of the name, one row, and their positions."""
        config, base = self.config, task.base
        frame = frame_after(base, config.inversion_tokens, template)
        adversary = Adversary(
            initial_tokens(base, frame.count, name, task.seed),
            config.inversion_learning_rate,
            config.inversion_weight_decay,
            rule="adamw",
        )
        steps = config.inversion_steps
        learnt = invert(base, base.denoiser, images, [frame], adversary, steps, task.seed, name, NORM_SHARE)
        with torch.no_grad():
            return frame.encode(base, learnt), frame.positions


def resteering_loss(maps: list[Tensor], concept: Tensor) -> Tensor:
    """The Frobenius norm of all probabilities at the concept's tokens.

    maps: (B, heads, pixels, tokens) of each layer; concept: (B, tokens), bool.
    """
    squares = [(probabilities * concept[:, None, None, :]).square().sum() for probabilities in maps]
    return torch.stack(squares).sum().sqrt()
