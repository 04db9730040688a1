"""UCE's debiasing: what of each attribute a concept's values are given, so that its images show attributes evenly.

    v*_i = W0 ( c_i + sum_a amount_ia c_a )

The amounts are the config's, or they are found in rounds. In each, images of every concept are made by the model as it
is edited so far, a zero-shot classifier says which attribute each shows most, and

    amount_ia  +=  step ( share wanted of a - share of the images of i )

until no share is off by `tolerance` or more. A concept whose shares are right keeps its amounts in that round.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from efface.config_files import StrictModel
from efface.errors import UserError
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.train.data.concept_keys import Encoded, Tokens

Classify = Callable[[np.ndarray, Sequence[str]], Sequence[int]]
"""Images, uint8 (N, H, W, 3), and attributes -> the number of the attribute that each image shows most, (N,)."""


class Debiasing(StrictModel):
    """The attributes, and how much of each; defaults are those of the authors' `uce_sd_debias.py`."""

    attributes: tuple[str, ...] = Field(min_length=1, description="prompts, each once: male, female")
    shares: tuple[float, ...] = Field(
        (), description="share of a concept's images that should show each attribute, 1 in all; none given: alike"
    )
    amounts: dict[str, tuple[float, ...]] = Field(
        {}, description="by concept: how much of each attribute; then no image is made. none given: they are found"
    )
    classifier: str = Field(
        "openai/clip-vit-base-patch32",
        description="hub id or folder of the zero-shot image classifier that finds them; authors: this one",
    )
    images: int = Field(10, ge=1, description="images of a concept in a round; authors 10")
    rounds: int = Field(30, ge=1, description="rounds at most; authors 30")
    step: float = Field(
        1.0,
        gt=0,
        description="what the amounts grow by, times what a share lacks; authors 1: their step_size is not read",
    )
    tolerance: float = Field(0.05, gt=0, le=1, description="a share off by less is right; authors 0.05")
    scheduler: str = Field("pndm", description="scheduler of these images; authors: the checkpoint's")
    steps: int = Field(20, ge=1, le=1000, description="inference steps of these images; authors 20")
    guidance_scale: float = Field(7.5, ge=0, description="classifier-free guidance of these images; authors 7.5")

    @model_validator(mode="after")
    def _one_number_for_each_attribute(self) -> "Debiasing":
        count = len(self.attributes)
        if len(set(self.attributes)) < count:
            raise ValueError("every attribute should be named once")
        if self.shares and (len(self.shares) != count or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(f"shares should be {count} numbers that sum to 1, one for each attribute")
        wrong = next((name for name, amounts in self.amounts.items() if len(amounts) != count), None)
        if wrong is not None:
            raise ValueError(f"amounts of {wrong} should be {count} numbers, one for each attribute")
        return self

    @property
    def wanted(self) -> Tensor:
        """The share of each attribute, (attributes,) fp64."""
        count = len(self.attributes)
        return torch.tensor(self.shares or [1 / count] * count, dtype=torch.float64)

    def amounts_of(self, concepts: Sequence[str]) -> Tensor:
        """The amounts given, (concepts, attributes) fp64. Raises UserError where a concept has none."""
        missing = next((name for name in concepts if name not in self.amounts), None)
        if missing is not None:
            raise UserError(f"debias: there are amounts of {', '.join(self.amounts)}, and should be of {missing} too")
        return torch.tensor([self.amounts[name] for name in concepts], dtype=torch.float64)

    def recipe(self, image_size: int) -> Recipe:
        """What the images are made by; `image_size` in pixels."""
        return Recipe(
            name="images to classify",
            scheduler=self.scheduler,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            height=image_size,
            width=image_size,
        )


def find_amounts(measure: Callable[[Tensor, int], Tensor], concepts: int, config: Debiasing) -> tuple[Tensor, Tensor]:
    """Amounts, and the shares that were last measured with other ones or these: both (concepts, attributes) fp64.

    measure: (amounts, round 0, 1, …) -> shares of the images by the model that these amounts edit. With rounds used up,
    the amounts are those after the last of them, which were not measured.
    """
    amounts = torch.zeros(concepts, len(config.attributes), dtype=torch.float64)
    for number in range(config.rounds):
        shares = measure(amounts, number)
        off = config.wanted - shares
        off[(off.abs() < config.tolerance).all(dim=1)] = 0.0
        if not off.any():
            break
        amounts = amounts + config.step * off
    return amounts, shares


def with_attributes(
    concept: Encoded, attributes: list[Encoded], amounts: Tensor, tokens: Tokens
) -> tuple[Tensor, Tensor]:
    """Keys of a concept's prompt, and these with `amounts` (attributes,) of the attributes' added: (n, d) each, fp64.

    All are aligned at their last words, as far as the latest of them can reach.
    """
    keys = [one.keys(tokens).double() for one in (concept, *attributes)]
    count = min(map(len, keys))
    own, *others = (each[:count] for each in keys)
    return own, own + sum(amount * each for amount, each in zip(amounts.tolist(), others, strict=True))


def shares_of_images(
    base: Base, prompts: Sequence[Sequence[str]], config: Debiasing, classify: Classify, number: int
) -> Tensor:
    """Of images of each concept by the base as it is: the share that shows each attribute, (concepts, attributes) fp64.

    `prompts` of a concept are drawn in turns. Every round has seeds of its own, the same for every concept and job.
    """
    recipe, rows = config.recipe(base.spec.image_size), []
    for own in prompts:
        seeds = range(number * config.images, (number + 1) * config.images)
        images = sample(base, recipe, [ImageRequest(own[seed % len(own)], seed) for seed in seeds])
        shown = torch.as_tensor(classify(images, config.attributes), dtype=torch.int64)
        rows.append(torch.bincount(shown, minlength=len(config.attributes)).double() / config.images)
    return torch.stack(rows)


def load_classifier(source: str, device: torch.device) -> Classify:
    """A zero-shot image classifier of the hub, or of a folder. Raises UserError where it cannot be had."""
    from PIL import Image
    from transformers import pipeline

    try:
        classifier: Any = pipeline("zero-shot-image-classification", model=source, device=device)
    except (OSError, ValueError) as error:
        raise UserError(
            f"debias: the classifier {source} cannot be loaded ({str(error).splitlines()[0]}); get it, or give the "
            "amounts"
        ) from None

    def classify(images: np.ndarray, attributes: Sequence[str]) -> list[int]:
        found = classifier([Image.fromarray(image) for image in images], candidate_labels=list(attributes))
        return [attributes.index(max(answers, key=lambda answer: answer["score"])["label"]) for answers in found]

    return classify
