"""Textual inversion (`models/text/textual_inversion.py`) on images that the base made of a concept.

As the authors of Forget-Me-Not train tokens: several, which begin as the words of the concept's name and then as noise;
AdamW; and after every step each token's norm is drawn a tenth of the way to what the base's own tokens have on average
(theirs: to 0.4). `norm_share` 0 leaves norms as they come, as textual inversion has it.
"""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor

from efface.models.adversary import Adversary
from efface.models.base import Base
from efface.models.noise_predictor import NoisePredictor
from efface.models.text.embedding_space import check_family, embedding_table
from efface.models.text.text_encoding import last_subject_token, token_ids
from efface.models.text.textual_inversion import Frame, inversion_loss
from efface.train.data.latents import Posterior, noised
from efface.train.method import MethodConfig
from efface.train.seeds import choice, generator, normal, shuffled

NORM_SHARE = 0.1  # of the way, after each step, of Forget-Me-Not


class InversionConfig(MethodConfig):
    """The settings of an inversion."""

    inversion_steps: int = Field(
        0, ge=0, description="steps of a textual inversion that names the concept first; authors 500, 0: by its words"
    )
    inversion_tokens: int = Field(4, ge=1, description="tokens that are learnt; authors 4")
    inversion_learning_rate: float = Field(1e-3, gt=0, description="of AdamW; authors 1e-3")
    inversion_weight_decay: float = Field(0.1, ge=0, description="of that AdamW; authors 0.1")


def initial_tokens(base: Base, count: int, words: str, seed: int) -> Tensor:
    """(count, D): the embeddings of the first words, then noise."""
    table, rng = embedding_table(base), generator(seed, "inversion", words)
    ids = token_ids(base, [words])[0, 1 : 1 + last_subject_token(base, [words])[0]][:count]
    start = normal((count, table.shape[1]), rng, table.device)
    start[: len(ids)] = table[ids]
    return start


def invert(
    base: Base,
    predict: NoisePredictor,
    images: Posterior,
    frames: Sequence[Frame],
    adversary: Adversary,
    steps: int,
    seed: int,
    purpose: str,
    norm_share: float = 0.0,
) -> Tensor:
    """The embeddings (n, D) that the adversary has come to, for images as `predict` sees them; a frame for each step.

    purpose: of the random numbers, beside the seed. Raises UserError for a family whose prompts are not one text
    encoder's.
    """
    check_family(base)
    own_norm = float(embedding_table(base).norm(dim=1).mean())
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    for step in range(steps):
        rng = generator(seed, "inversion", purpose, step)
        chosen = shuffled(len(images.mean), step, seed, "inversion", purpose)
        sample = noised(images, [chosen], scheduler, rng)
        frame = choice(frames, rng)
        with torch.enable_grad():
            state = (sample.latents, sample.timesteps, sample.truth)
            adversary.minimize(inversion_loss(base, predict, frame, adversary.value, *state))
        with torch.no_grad():
            norms = adversary.value.norm(dim=1, keepdim=True)
            adversary.value.mul_((norms + norm_share * (own_norm - norms)) / norms)
    return adversary.value.detach()
