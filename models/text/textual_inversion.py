"""Textual inversion (Gal et al., ICLR 2023, arXiv 2208.01618, eq. 2): embeddings of new tokens that mean some images.

    minimise over v   || eps - eps_theta(x_t, prompt with v) ||^2

for noised images x_t. On an erased model it brings a concept back (Pham et al., ICLR 2024, arXiv 2308.01508), so it is
an attack, and what some methods are trained against.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor
from efface.models.text.embedding_space import encode_embeddings, framed_ids
from efface.models.text.text_encoding import last_subject_token, token_ids


@dataclass(frozen=True)
class Frame:
    """A prompt with places for free tokens."""

    ids: Tensor
    """(1, 77); what stands in the free places does not matter."""
    position: int
    """Of the first of them."""
    count: int

    @property
    def positions(self) -> list[int]:
        """Of all of them."""
        return list(range(self.position, self.position + self.count))

    def encode(self, base: Base, embeddings: Tensor) -> Conditioning:
        """One row, of the base's text encoder with `embeddings` (count, D) in the free places; with gradient."""
        return encode_embeddings(base, self.ids, embeddings, self.position)


def frame_before(base: Base, count: int, prompt: str = "") -> Frame:
    """With the free places in front of `prompt`, whose end may be cut."""
    return Frame(framed_ids(base, count, prompt), 1, count)


def frame_after(base: Base, count: int, prompt: str) -> Frame:
    """With the free places behind `prompt`."""
    ids = token_ids(base, [prompt])
    first = last_subject_token(base, [prompt])[0] + 1
    shifted = torch.cat([ids[:, :first], ids.new_zeros(1, count), ids[:, first:]], dim=1)
    return Frame(shifted[:, : ids.shape[1]], first, count)


def reconstruction_loss(
    predict: NoisePredictor, x_t: Tensor, timesteps: Tensor, cond: Conditioning, truth: Tensor
) -> Tensor:
    """The mean squared error of a prediction at x_t (B, C, h, w), of one row for all; truth: the noise."""
    return mse_loss(predict(x_t, timesteps, cond.expand(len(x_t))), truth)


def inversion_loss(
    base: Base, predict: NoisePredictor, frame: Frame, learnt: Tensor, x_t: Tensor, timesteps: Tensor, truth: Tensor
) -> Tensor:
    """What learnt tokens (n, D) make smaller, by the base's text encoder and a network that predicts."""
    return reconstruction_loss(predict, x_t, timesteps, frame.encode(base, learnt), truth)
