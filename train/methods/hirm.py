"""HiRM: high-level representation misdirection (ICLR 2026), with a random direction (HiRM-R).

    L = mean ( A_theta(c) - r )^2,    r = norm u / |u|,  u uniform on [0, 1)

A(c), of all 77 positions, is what the last layer's self-attention of the text encoder gives for the concept's prompt c,
and r a fixed direction of the same shape. Only the first layer's self-attention and MLP are trained, so the change is
where words get their meaning and the aim where the denoiser reads it; nothing else is held. The denoiser is not needed.

Several concepts, and several prompts of one, are trained in turns; each concept has a direction of its own.
"""

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import token_ids
from efface.models.text_encoder import TextEncoder, recorded
from efface.train.data.captions import has_phrase_once
from efface.train.method import GradientConfig, GradientMethod, Strategy, UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.seeds import generator, uniform


class HiRMConfig(GradientConfig):
    """The authors' settings, as a port of their code has them: 50 steps of AdamW, seconds on a CPU."""

    steps: int = Field(50, ge=1, description="optimiser steps; authors 50, for styles 20 and objects 15")
    learning_rate: float = Field(1e-4, gt=0, description="of AdamW; authors 1e-4")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="authors AdamW, with a beta2 of 0.98")
    weight_decay: float = Field(1e-8, ge=0, description="of AdamW; authors 1e-8")
    norm: float = Field(5000.0, gt=0, description="Euclidean norm of the direction, over all positions; authors 5000")
    templates: tuple[str, ...] = Field(
        ("{}",), min_length=1, description="prompts, {} being the concept's phrase; authors one, the bare name"
    )

    @field_validator("templates")
    @classmethod
    def _one_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(has_phrase_once, templates)):
            raise ValueError("every template should hold '{}' once, the place of the concept, and no other brace")
        return templates


@register("hirm")
class HiRM(GradientMethod):
    """Turns what the text encoder's last layer says of a concept to noise, by its first layer's weights."""

    Config = HiRMConfig
    config: HiRMConfig
    network = "text_encoder"
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    group = "te-layer0"

    def cost(self, shapes: ModelShapes) -> Cost:
        return Cost(text_rows=1)

    def prepare(self, task: UnlearningTask, student: TextEncoder) -> None:
        concepts = [concept.phrase for concept in task.concepts for _ in self.config.templates]
        prompts = [form.format(concept.phrase) for concept in task.concepts for form in self.config.templates]
        self.ids = token_ids(task.base, prompts)
        self.attention = student.layers[-1].self_attn.out_proj
        width = self.attention.out_features
        rows = [uniform((self.ids.shape[1], width), generator(task.seed, "hirm", name)) for name in concepts]
        self.directions = [self.config.norm * row / row.norm() for row in rows]
        self.device = task.base.device

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Ids (1, 77) and direction (1, 77, D) of one prompt after another."""
        row = index % len(self.ids)
        return self.ids[row : row + 1], self.directions[row][None].to(self.device)

    def loss(self, student: TextEncoder, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, direction = batch
        with recorded(self.attention) as activations:
            student(ids)
        return mse_loss(activations[-1].float(), direction)
