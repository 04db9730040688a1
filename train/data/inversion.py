"""Textual inversion (Gal et al., ICLR 2023, arXiv 2208.01618): the embeddings of new tokens that mean some images.

    minimise over v   E || eps - eps*(x_t, prompt with v) ||^2

for images x_0 in the frozen base. As the authors of Forget-Me-Not train them: several tokens, which begin as the words
of the concept's name and then as noise; AdamW; and after every step each token's norm is drawn a tenth of the way to
what the base's own tokens have on average (theirs: to 0.4).
"""

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.embedding_space import check_family, embedding_table, encode_embeddings
from efface.models.text_encoding import last_subject_token, token_ids
from efface.train.data.latents import Posterior, noised
from efface.train.method import MethodConfig
from efface.train.seeds import generator, normal, shuffled

NORM_SHARE = 0.1  # of the way, after each step


class InversionConfig(MethodConfig):
    """The settings of an inversion."""

    inversion_steps: int = Field(
        0, ge=0, description="steps of a textual inversion that names the concept first; authors 500, 0: by its words"
    )
    inversion_tokens: int = Field(4, ge=1, description="tokens that are learnt; authors 4")
    inversion_learning_rate: float = Field(1e-3, gt=0, description="of AdamW; authors 1e-3")
    inversion_weight_decay: float = Field(0.1, ge=0, description="of that AdamW; authors 0.1")


def free_places(base: Base, template: str, count: int) -> tuple[Tensor, int]:
    """Ids (1, 77) of a prompt that ends in `count` places for free tokens, and the position of the first."""
    ids = token_ids(base, [template])
    first = last_subject_token(base, [template])[0] + 1
    shifted = torch.cat([ids[:, :first], ids.new_zeros(1, count), ids[:, first:]], dim=1)
    return shifted[:, : ids.shape[1]], first


def invert(base: Base, images: Posterior, template: str, name: str, config: InversionConfig, seed: int) -> Tensor:
    """The learnt embeddings, (tokens, D), of the free places after `template`. `name`: words to begin with.

    Raises UserError for a family whose prompts are not one text encoder's.
    """
    check_family(base)
    table, rng = embedding_table(base), generator(seed, "inversion", name)
    own_norm = float(table.norm(dim=1).mean())
    ids, first = free_places(base, template, config.inversion_tokens)
    words = token_ids(base, [name])[0, 1 : 1 + last_subject_token(base, [name])[0]][: config.inversion_tokens]
    start = normal((config.inversion_tokens, table.shape[1]), rng, table.device)
    start[: len(words)] = table[words]
    learnt = start.requires_grad_()
    optimizer = torch.optim.AdamW(
        [learnt], lr=config.inversion_learning_rate, weight_decay=config.inversion_weight_decay
    )
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    for step in range(config.inversion_steps):
        chosen = shuffled(len(images.mean), step, seed, "inversion", name)
        sample = noised(images, [chosen], scheduler, generator(seed, "inversion", name, step))
        asked = encode_embeddings(base, ids, learnt, first)
        loss = mse_loss(base.denoiser(sample.latents, sample.timesteps, asked), sample.truth)
        (learnt.grad,) = torch.autograd.grad(loss, [learnt])
        optimizer.step()
        with torch.no_grad():
            norms = learnt.norm(dim=1, keepdim=True)
            learnt.mul_((norms + NORM_SHARE * (own_norm - norms)) / norms)
    return learnt.detach()


@torch.no_grad()
def encode_learnt(base: Base, template: str, learnt: Tensor) -> tuple[Conditioning, list[int]]:
    """The prompt with learnt tokens after `template`, one row, and their positions."""
    ids, first = free_places(base, template, len(learnt))
    return encode_embeddings(base, ids, learnt, first), list(range(first, first + len(learnt)))
