"""TEA: text encoder alignment for robust concept erasure (Farashah et al., arXiv 2608.15341).

    L   = lambda_adv BCE( D(h_theta(c)), 0 ) + lambda_pres mean ( 1 - cos( h_theta(a), h*(a) ) )
    L_D = BCE( D(h_theta(c)), 1 ) + BCE( D(h_theta(a)), 0 )

for pairs of a prompt of the concept, c, and one of its anchor, a. h are the last layer's states of all tokens but
padding, before the last norm; D is a discriminator of single tokens, and every step of the encoder follows one of D's.
BCE and mean are over tokens. As in the authors' code the prompts go in without the tokens of begin and end, and padding
is not attended to.

Several concepts are in one list of pairs. In a chain h* is the encoder of the request before.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity
from torch.nn.utils import skip_init

from efface.models.shapes import ModelShapes
from efface.models.text_encoder import TextEncoder, recorded
from efface.train.data.captions import captions
from efface.train.data.score_distance import AnchoredConfig
from efface.train.method import GradientConfig, GradientMethod, Strategy, UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.seeds import generator, shuffled, uniform


class TEAConfig(GradientConfig, AnchoredConfig):
    """The authors' settings for Stable Diffusion v1.4: two rounds of 250 pairs, 32 at a time."""

    steps: int = Field(16, ge=1, description="optimiser steps; authors two rounds, 16 of 32 pairs")
    batch_size: int = Field(32, ge=1, description="pairs in a step; authors 32")
    learning_rate: float = Field(1e-5, gt=0, description="of AdamW; authors 1e-5")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="authors AdamW, as of the discriminator")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW, for encoder and discriminator; authors 0.01")
    discriminator_learning_rate: float = Field(1e-3, gt=0, description="of the discriminator's AdamW; authors 1e-3")
    adversarial_weight: float = Field(0.5, ge=0, description="lambda_adv; authors 0.5")
    preservation_weight: float = Field(1.0, ge=0, description="lambda_pres; authors 1")
    prompts: int = Field(
        200, ge=1, description="pairs of a concept at most, of the built-in captions; authors 50 with 5 anchors each"
    )


class Tokens(NamedTuple):
    """Prompts without special tokens: ids and attention mask, (B, 77) each."""

    ids: Tensor
    mask: Tensor


class Pairs(NamedTuple):
    """A batch."""

    concept: Tokens
    anchor: Tokens
    held: Tensor
    """h*(a), (B, 77, D)."""


def masked_bce(logits: Tensor, label: float, mask: Tensor) -> Tensor:
    """The mean over tokens of the cross-entropy with one label; logits (B, 77, 1)."""
    losses = binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")
    return (losses.squeeze(-1) * mask).sum() / mask.sum()


def preservation(states: Tensor, held: Tensor, mask: Tensor) -> Tensor:
    """The mean over tokens of 1 - cos."""
    return ((1 - cosine_similarity(states, held, dim=-1)) * mask).sum() / mask.sum()


@register("tea")
class TEA(GradientMethod):
    """Makes the tokens of a concept's prompts look like those of its anchor's, by a discriminator of tokens."""

    Config = TEAConfig
    config: TEAConfig
    network = "text_encoder"
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    group = "te-full"

    def cost(self, shapes: ModelShapes) -> Cost:
        return Cost(text_rows=2 * self.config.batch_size)

    def prepare(self, task: UnlearningTask, student: TextEncoder) -> None:
        self.seed, self.base, self.student = task.seed, task.base, student
        self.teacher = TextEncoder(task.base.text_encoder)
        self.pairs = [
            caption
            for concept in task.concepts
            for caption in captions(concept, task.concept_set, {}, self.config.prompts)
        ]
        width, device = task.base.text_encoder.config.hidden_size, task.base.device
        layers = [skip_init(nn.Linear, *shape) for shape in ((width, width // 2), (width // 2, 1))]
        rng = generator(task.seed, "tea", "discriminator")
        with torch.no_grad():
            for layer in layers:  # torch's own initialisation, from our seed
                for value in layer.parameters():
                    value.copy_(layer.in_features**-0.5 * (2 * uniform(tuple(value.shape), rng) - 1))
        self.discriminator = nn.Sequential(layers[0], nn.ReLU(), layers[1])
        self.discriminator.to(device)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            lr=self.config.discriminator_learning_rate,
            weight_decay=self.config.weight_decay,
        )

    def tokens(self, prompts: list[str]) -> Tokens:
        settings = {"padding": "max_length", "truncation": True, "max_length": self.base.tokenizer.model_max_length}
        found = self.base.tokenizer(prompts, add_special_tokens=False, return_tensors="pt", **settings)
        return Tokens(found["input_ids"].to(self.base.device), found["attention_mask"].to(self.base.device))

    def states(self, encoder: TextEncoder, tokens: Tokens) -> Tensor:
        """h, (B, 77, D)."""
        with recorded(encoder.layers[-1]) as outputs:
            encoder(tokens.ids, attention_mask=tokens.mask)
        return outputs[-1].float()

    def batch(self, index: int) -> Pairs:
        first = index * self.config.batch_size
        turns = range(first, first + self.config.batch_size)
        drawn = [self.pairs[shuffled(len(self.pairs), turn, self.seed, "tea")] for turn in turns]
        anchor = self.tokens([pair.anchor for pair in drawn])
        return Pairs(self.tokens([pair.targets[0] for pair in drawn]), anchor, self.states(self.teacher, anchor))

    def before_step(self, step: int) -> None:
        batches = self.config.gradient_accumulation_steps
        for index in range(step * batches, (step + 1) * batches):
            with torch.no_grad():
                pairs = self.batch(index)
                concept, anchor = self.states(self.student, pairs.concept), self.states(self.student, pairs.anchor)
            self.optimizer.zero_grad()
            self.discriminator_loss(concept, anchor, pairs).backward()
            self.optimizer.step()

    def discriminator_loss(self, concept: Tensor, anchor: Tensor, pairs: Pairs) -> Tensor:
        """L_D of states (B, 77, D)."""
        of_concept = masked_bce(self.discriminator(concept), 1.0, pairs.concept.mask)
        return of_concept + masked_bce(self.discriminator(anchor), 0.0, pairs.anchor.mask)

    def loss(self, student: TextEncoder, pairs: Pairs) -> Tensor:
        fooled = masked_bce(self.discriminator(self.states(student, pairs.concept)), 0.0, pairs.concept.mask)
        kept = preservation(self.states(student, pairs.anchor), pairs.held, pairs.anchor.mask)
        return self.config.adversarial_weight * fooled + self.config.preservation_weight * kept

    def state(self) -> dict[str, Tensor]:
        kept = dict(self.discriminator.state_dict())
        for name, value in self.discriminator.named_parameters():
            kept |= {f"{name}/{key}": moment for key, moment in self.optimizer.state[value].items()}
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.discriminator.named_parameters():
            with torch.no_grad():
                value.copy_(state[name])
            names = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in state]
            if names:
                own = {key: state[f"{name}/{key}"].to("cpu" if key == "step" else value.device) for key in names}
                self.optimizer.state[value] = own
