"""Soft prompts: what an adversary writes where the text encoder looks up its tokens, so that a concept comes back.

A search goes against the encoder that is being edited, and through the frozen denoiser (S-GRACE, arXiv 2510.27285):

    A(z) = mean ( eps*(x_t, te(z)) - z_T )^2 + w ( 1 - mean cos( f(z), f*(c) ) )

by Adam on the sign of the gradient. f is the encoder's state at a prompt's end, or from there on, and z_T the noise
from which the frozen model has denoised x_t for the concept c.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from efface.models.adversary import Adversary
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import last_subject_token, token_ids
from efface.models.text_encoder import TextEncoder

State = Literal["end", "padding"]


@dataclass(frozen=True)
class SoftPrompts:
    """n prompts."""

    ids: Tensor
    """(n, 77) int64: begin, the tokens that the soft ones started as, end, padding."""
    ends: Tensor
    """(n,) int64: the position of the end."""
    embeddings: Tensor
    """(n, 77, width): of the tokens, without those of the positions."""

    @staticmethod
    def of(base: Base, texts: Sequence[str]) -> "SoftPrompts":
        """What the texts are to the base."""
        ids = token_ids(base, texts)
        ends = torch.tensor([last + 1 for last in last_subject_token(base, texts)], device=ids.device)
        return SoftPrompts(ids, ends, TextEncoder(base.text_encoder).embed(ids).detach().clone())

    def with_new(self, others: "SoftPrompts", new: Tensor) -> "SoftPrompts":
        """These, and the others where `new`, (n,) bool, says so."""
        row = new.to(self.ids.device)
        return SoftPrompts(
            torch.where(row[:, None], others.ids, self.ids),
            torch.where(row, others.ends, self.ends),
            torch.where(row[:, None, None], others.embeddings, self.embeddings),
        )

    def features(self, encoder: TextEncoder, state: State) -> Tensor:
        """f(z), (n, D), of an encoder."""
        return read_state(encoder(self.ids, self.embeddings), self.ends, state)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, fp32."""
        return {name: value.float() for name, value in vars(self).items()}

    @staticmethod
    def read(tensors: Mapping[str, Tensor], device: torch.device) -> "SoftPrompts":
        """Of `tensors`, on a device."""
        ids, ends, embeddings = (tensors[name].to(device) for name in ("ids", "ends", "embeddings"))
        return SoftPrompts(ids.long(), ends.long(), embeddings)


@dataclass(frozen=True)
class SoftPromptSearch:
    """What an adversary needs to know beside the encoder."""

    base: Base
    latents: Tensor
    """x_t, (1, 4, h, w)."""
    timestep: Tensor
    noise: Tensor
    """z_T, (1, 4, h, w)."""
    target: Tensor
    """f*(c), (1, D)."""
    target_weight: float
    state: State

    def run(self, encoder: TextEncoder, prompts: SoftPrompts, steps: int, rate: float) -> SoftPrompts:
        """So many steps from `prompts`, one prompt after another in each; the encoder is left as it is."""
        positions = torch.arange(prompts.ids.shape[1], device=prompts.ids.device)
        soft = ((positions > 0) & (positions < prompts.ends[:, None])).unsqueeze(-1)
        adversary = Adversary(prompts.embeddings, rate)
        for _ in range(steps):
            gradients = [self.gradient(encoder, prompts, adversary.value, row) for row in range(len(soft))]
            adversary.step(torch.cat(gradients).sign() * soft)
        return SoftPrompts(prompts.ids, prompts.ends, adversary.value.detach())

    def gradient(self, encoder: TextEncoder, prompts: SoftPrompts, value: Tensor, row: int) -> Tensor:
        """Of A by one of the prompts, (1, 77, width); its sign is that of the mean over all."""
        one = slice(row, row + 1)
        own = value[one]
        hidden = encoder(prompts.ids[one], own)
        predicted = self.base.denoiser(self.latents, self.timestep, Conditioning(hidden))
        near = cosine_similarity(read_state(hidden, prompts.ends[one], self.state), self.target).mean()
        (gradient,) = torch.autograd.grad(mse_loss(predicted, self.noise) + self.target_weight * (1 - near), own)
        return gradient


def read_state(hidden: Tensor, ends: Tensor, state: State) -> Tensor:
    """(n, D) of hidden states (n, 77, D): at the prompts' ends, or the mean of these and of the padding after them."""
    if state == "end":
        return hidden[torch.arange(len(hidden), device=hidden.device), ends]
    rest = torch.arange(hidden.shape[1], device=hidden.device) >= ends[:, None]
    return (hidden * rest.unsqueeze(-1)).sum(dim=1) / rest.sum(dim=1, keepdim=True)
