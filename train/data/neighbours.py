"""The concept neighbourhood of FADE (Thakral et al., CVPR 2025): the concepts that look most like a target.

The base draws a few images of every candidate; an image encoder describes each by a feature of unit length; a
concept is the mean of its images' features, and a concept's neighbours are those of highest cosine to it. The
means are kept in a cache, so that a set of n concepts costs n times its images, however many targets ask; the
processes of a group share the work.
"""

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from efface.concepts.concept import Concept
from efface.errors import StorageError, UserError
from efface.files import content_id, write_atomic
from efface.models.base import Base
from efface.models.image_encoders import load_image_encoder
from efface.models.recipe import load_recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.models.shapes import ModelShapes
from efface.train.collectives import all_gather, distributed_map
from efface.train.method import MethodConfig, UnlearningTask
from efface.train.method_cost import BaseImages

IMAGE_ENCODER_WEIGHTS = 304_000_000  # CLIP ViT-L/14, the half that reads images
PROMPTS_PER_CHUNK = 16  # drawn together, so that an interrupted run keeps what it has


Prompts = Annotated[tuple[str, ...], Field(min_length=1)]


class NeighbourConfig(MethodConfig):
    """The settings of a method that is shown the concept's neighbours."""

    neighbours: Literal["computed", "adjacent"] | Prompts = Field(
        "computed",
        description="A: the candidates nearest by images, the set's adjacent concepts, or these prompts",
    )
    neighbour_count: int = Field(5, ge=1, description="K, neighbours at most, unless they are listed here; paper: 5")
    candidates: Prompts | None = Field(
        None, description="phrases of which neighbours are computed; null: all others of the concept set"
    )
    images_per_candidate: int = Field(8, ge=1, description="images a candidate is judged by; paper: not given")

    @property
    def most_neighbours(self) -> int:
        return len(self.neighbours) if isinstance(self.neighbours, tuple) else self.neighbour_count

    def neighbour_images(self, shapes: ModelShapes) -> BaseImages | None:
        """Those by which neighbours are found: of each concept of the set, or of the concept and its candidates."""
        if self.neighbours != "computed":
            return None
        count, candidates = self.images_per_candidate, self.candidates
        return BaseImages(
            shapes.recipe,
            per_concept=count * (1 + len(candidates)) if candidates else 0,
            per_set_concept=0 if candidates else count,
            encoder_weights=IMAGE_ENCODER_WEIGHTS,
        )


def nearest(
    base: Base, target: str, candidates: Sequence[str], count: int, images: int, cache: Path | None = None
) -> list[str]:
    """The `count` candidate prompts (or all, where fewer) most like the prompt `target`, nearest first.

    Draws `images` images of each with the base's own recipe, seeds 0, 1, …, but for those found in the folder
    `cache`. Raises UserError where the base names no image encoder.
    """
    features = concept_features(base, [target, *candidates], images, cache)
    return [candidates[i] for i in rank_by_similarity(features[0], features[1:])[:count]]


def neighbour_phrases(task: UnlearningTask, concept: Concept, config: NeighbourConfig) -> list[str]:
    """Phrases of concepts near this one, none of which is to be forgotten too, or was erased before.

    Raises UserError where there is none.
    """
    computed = config.neighbours == "computed"
    known = task.concept_set.all if computed else task.concept_set.adjacent_to(concept)
    phrases = [other.phrase for other in known]
    if computed and config.candidates is not None:
        phrases = list(config.candidates)
    forgotten = {gone.phrase for gone in (*task.concepts, *task.erased)}
    phrases = [phrase for phrase in phrases if phrase not in forgotten]
    if computed and phrases:
        count, images = config.neighbour_count, config.images_per_candidate
        phrases = nearest(task.base, concept.phrase, phrases, count, images, task.cache)
    if not phrases:
        raise UserError(f"fade finds no neighbours of '{concept.name}': list some in its config, neighbours")
    return phrases[: config.neighbour_count]


def rank_by_similarity(target: Tensor, features: Tensor) -> list[int]:
    """Row numbers of `features` (n, d), highest cosine to `target` (d,) first; on a tie the earlier row."""
    similarity = F.cosine_similarity(features.double(), target.double()[None])
    return similarity.argsort(descending=True, stable=True).tolist()


def mean_feature(features: Tensor) -> Tensor:
    """The mean (d,) of the features (n, d) of n images, each brought to unit length first."""
    return F.normalize(features.double(), dim=-1).mean(dim=0)


def concept_features(base: Base, prompts: Sequence[str], images: int, cache: Path | None = None) -> Tensor:
    """The mean feature of each prompt's images, (n, d), fp64, on the CPU."""
    if base.spec.image_encoder is None:
        where = f"base '{base.spec.name}' names no image_encoder to find neighbours with"
        raise UserError(f"{where}: name one, or list the neighbours")
    recipe = load_recipe(base.spec.recipe)
    drawn_by = [base.state_id, base.spec.image_encoder, recipe.id]
    files = {prompt: _file(cache, [*drawn_by, prompt, images]) for prompt in prompts}
    found = {prompt: torch.from_numpy(np.load(file)) for prompt, file in files.items() if file and file.is_file()}
    uncached = {prompt for prompt in files if prompt not in found}
    missing = set().union(*all_gather(uncached))
    pending = [prompt for prompt in files if prompt in missing]
    if pending:
        encoder = load_image_encoder(base.spec.image_encoder, base.device)

        def generate_features(chunk: Sequence[str]) -> dict[str, Tensor]:
            drawn = sample(base, recipe, [ImageRequest(prompt, seed) for prompt in chunk for seed in range(images)])
            described = encoder(drawn).split(images)
            features = {prompt: mean_feature(each) for prompt, each in zip(chunk, described, strict=True)}
            for prompt, feature in features.items():
                _save_feature(files[prompt], feature)
            uncached.difference_update(chunk)
            return features

        parts = [pending[start : start + PROMPTS_PER_CHUNK] for start in range(0, len(pending), PROMPTS_PER_CHUNK)]
        for features in distributed_map(parts, generate_features):
            found |= features
            for prompt in features.keys() & uncached:  # drawn by others
                _save_feature(files[prompt], found[prompt])
    return torch.stack([found[prompt] for prompt in prompts])


def _file(cache: Path | None, key: list[str | int | None]) -> Path | None:
    """Where the mean feature of a prompt is kept."""
    return cache / f"concept-feature-{content_id(key)}.npy" if cache else None


def _save_feature(file: Path | None, feature: Tensor) -> None:
    if file:
        data = io.BytesIO()
        np.save(data, feature.numpy())
        with suppress(StorageError):  # a cache that cannot be written costs time only
            write_atomic(file, data.getvalue())
