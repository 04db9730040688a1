"""The search of STEREO (`train/methods/stereo.py`): erase, find a token that still means the concept, and again.

Tokens that were found are kept in the job's cache, one file each, so that a job that is stopped does not look for them
again.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from efface.models.adversary import Adversary
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.text.text_encoding import encode_prompts
from efface.models.text.textual_inversion import frame_after, frame_before
from efface.train.data.latents import ImageConfig, Posterior, image_posterior
from efface.train.data.learnt_tokens import initial_tokens, invert
from efface.train.data.tensor_cache import cached
from efface.train.method import UnlearningTask

WORDS = {"style": "art", "celebrity": "person", "nsfw": "person"}
"""By the concept's kind, what a token begins as; else "object"."""
OPENINGS = {
    "style": ("a painting in the style of", "a rendering in the style of", "a good painting in the style of"),
    "celebrity": ("a photo portrait of",),
}
"""By the concept's kind, what stands before a token."""
OPENINGS_OF_OTHERS = ("a photo of a", "a rendering of a", "a good photo of the")

Erase = Callable[[UnlearningTask, Conditioning, int], Denoiser]
"""The model of a task's base without what an encoding means, one row; in round 0, 1, …"""


class TokenRoundsConfig(ImageConfig):
    """The settings of the search."""

    rounds: int = Field(4, ge=1, description="of the search; authors 4, nudity 2")
    inversion_steps: int = Field(3000, ge=1, description="of a textual inversion; authors 3000")
    inversion_learning_rate: float = Field(5e-3, gt=0, description="of AdamW there; authors 5e-3")
    inversion_openings: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="what stands before the token; null: some of the authors', by the concept's kind",
    )
    images: int = Field(500, ge=1, description="of the concept, by the base, shared among the rounds; authors 500")


def search(task: UnlearningTask, config: TokenRoundsConfig, erase: Erase, decides: list[Any]) -> list[Conditioning]:
    """The encodings of the tokens found, alone in a prompt, one row each. decides: JSON of all that they depend on."""
    base, seed, (concept,) = task.base, task.seed, task.concepts
    recipe = config.image_recipe(base.spec.image_size)
    photos = image_posterior(base, recipe, [f"a photo of {concept.phrase}"] * config.images, task.cache)
    openings = config.inversion_openings or OPENINGS.get(concept.kind, OPENINGS_OF_OTHERS)
    frames, alone = [frame_after(base, 1, opening) for opening in openings], frame_before(base, 1)
    start = initial_tokens(base, 1, WORDS.get(concept.kind, "object"), seed)
    now, erased, found = task, encode_prompts(base, [concept.phrase]), []
    for turn in range(config.rounds):
        model = erase(now, erased, turn)

        def find(turn: int = turn, model: Denoiser = model) -> Tensor:
            adversary = Adversary(start, config.inversion_learning_rate, 0.01, rule="adamw")
            images, steps = share_of(photos, turn, config.rounds), config.inversion_steps
            return invert(base, model, images, frames, adversary, steps, seed, f"round {turn}")

        token = cached(task.cache, "token", [*decides, turn], find, base.device)
        with torch.no_grad():
            erased = alone.encode(base, token)
        found.append(erased)
        now = replace(now, base=replace(base, unet=model.module))
    return found


def share_of(images: Posterior, turn: int, turns: int) -> Posterior:
    """The images of turn 0, 1, …, at least one."""
    count = max(1, len(images.mean) // turns)
    rows = [(turn * count + number) % len(images.mean) for number in range(count)]
    return Posterior(images.mean[rows], images.std[rows], images.scaling_factor)
