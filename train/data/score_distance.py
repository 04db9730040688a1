"""How near two prompts are to a model: the distance of what it predicts for them (LACU, ECCV 2026, arXiv 2512.02657).

    d(a, b) = E || eps*(x_t, a) - eps*(x_t, b) ||^2

for noised images x_t of a, by the model as it is: the base, in a chain the model of the request before. LACU maps a
concept to the nearest candidate that stays, and replays those that are nearest to it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.models.recipe import Recipe
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.latents import image_posterior, noised
from efface.train.method import MethodConfig, UnlearningTask
from efface.train.seeds import generator

IMAGES, DRAWS = 8, 4  # of a concept, and timesteps of each: LACU's 32 samples


class AnchoredConfig(MethodConfig):
    """The settings of a method that maps a concept to its anchor."""

    map_to: Literal["anchor", "nearest"] = Field(
        "anchor",
        description="what a concept is mapped to: its anchor, or, of the concepts shown that stay, the one for which "
        "the model predicts most nearly the same (LACU's safe target)",
    )


def drawing_recipe(image_size: int) -> Recipe:
    """By which LACU's images are made: 20 steps of DDIM without guidance."""
    return Recipe(name="replay", scheduler="ddim", steps=20, guidance_scale=1.0, height=image_size, width=image_size)


@torch.no_grad()
def score_distances(task: UnlearningTask, phrase: str, others: Sequence[str]) -> Tensor:
    """d of a phrase and each of the others, (n,) fp64 on the CPU."""
    base = task.base
    recipe = drawing_recipe(base.spec.image_size)
    images = image_posterior(base, recipe, [phrase] * IMAGES, task.cache)
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    own, rows = encode_prompts(base, [phrase]), encode_prompts(base, others)
    distances = torch.zeros(len(others), dtype=torch.float64)
    for draw in range(DRAWS):
        sample = noised(images, range(IMAGES), scheduler, generator(task.seed, "score distance", phrase, draw))
        said = base.denoiser(sample.latents, sample.timesteps, own.expand(IMAGES)).double()
        for number, row in enumerate(rows):
            other = base.denoiser(sample.latents, sample.timesteps, row.expand(IMAGES)).double()
            distances[number] += float((said - other).square().mean()) / DRAWS
    return distances


def with_nearest_anchors(task: UnlearningTask) -> UnlearningTask:
    """The task with each concept's anchor the nearest of the concepts that are shown, of its kind, and that stay.

    Raises UserError where there is none.
    """
    gone = {concept.name for concept in (*task.concepts, *task.erased)}

    def mapped(concept: Concept) -> Concept:
        safe = [other for other in task.concept_set.all if other.name not in gone and other.kind == concept.kind]
        if not safe:
            raise UserError(f"map_to: no {concept.kind} stays that '{concept.name}' could be mapped to: say 'anchor'")
        distances = score_distances(task, concept.phrase, [other.phrase for other in safe])
        return concept.model_copy(update={"anchor": safe[int(distances.argmin())].name})

    concepts = tuple(mapped(concept) for concept in task.concepts)
    return UnlearningTask(**{**vars(task), "concepts": concepts})
