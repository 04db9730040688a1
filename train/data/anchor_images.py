"""What CA is shown of an anchor: images that the base makes of its captions, in views, and the captions of each.

A view is a function of the image and of how often it was shown, not of the job's seed: jobs with one anchor share one
file in the cache.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field, model_validator
from torch import Tensor

from efface.concepts.concept import Concept, Kind
from efface.train.data.captions import Caption, Form, captions, places_fit
from efface.train.data.latents import ImageConfig, Posterior, image_posterior
from efface.train.data.score_distance import AnchoredConfig
from efface.train.data.views import Augmentation, View, draw_view
from efface.train.method import UnlearningTask
from efface.train.seeds import choice, generator, integers, normal, shuffled

Purpose = Literal["ablate", "prior"]


class AnchorConfig(ImageConfig, AnchoredConfig):
    """The settings of a method that trains on images of the anchor and captions of both."""

    anchor_prompts: int = Field(200, ge=1, description="captions of a concept's anchor; paper 200")
    anchor_images: int = Field(1000, ge=1, description="images of a concept's anchor, made by the base; paper 1000")
    image_guidance_scale: float = Field(6.0, ge=0, description="guidance of these images; authors' code 6")
    augment: Augmentation = Field(
        "none",
        description="views of the images: as they are, half of them mirrored (authors, for styles and nudity), or also "
        "shrunk onto grey or enlarged, with words for it in the caption (authors, for objects)",
    )
    target_captions: Form = Field(
        "first",
        description="the target's caption: the first of the authors' forms, any of them, drawn each time (authors), or "
        "the concept's phrase alone (authors, for memorised images)",
    )
    templates: dict[Kind, tuple[str, ...]] = Field(
        {}, description="own caption templates by the concept's kind, {} for its phrase; none: built-in ones"
    )

    @model_validator(mode="after")
    def _templates_have_their_places(self) -> "AnchorConfig":
        for kind, templates in self.templates.items():
            wrong = next((template for template in templates if not places_fit(template, kind)), None)
            if wrong is not None:
                raise ValueError(f"templates of {kind} should hold one {{}} each, not '{wrong}'")
        return self


@dataclass(frozen=True)
class Draw:
    """What is random in a batch of B samples."""

    clean: Tensor  # (B, 4, h, w), latents of the images
    noise: Tensor  # (B, 4, h, w)
    timesteps: Tensor  # (B,), int64
    anchors: list[str]  # B captions
    targets: list[str]
    regions: Tensor  # (B, 1, h, w), ones where the latents show the image


@dataclass(frozen=True)
class Images:
    """A concept's images, N of them, in one or more views."""

    posterior: Posterior
    captions: tuple[Caption, ...]
    views: dict[Purpose, list[list[View]]]
    """By purpose and round, a view of each image; none: as they are."""


class AnchorImages:
    """The images of a job's concepts, which take turns: each shows all of its images once, then in a new order."""

    def __init__(self, task: UnlearningTask, config: AnchorConfig, batch_size: int, batches: int) -> None:
        """batches: how many are drawn of a purpose, so that there is a view for each sample."""
        self.seed, self.config, self.batch_size = task.seed, config, batch_size
        self.rounds = -(-batches * batch_size // (len(task.concepts) * config.anchor_images))
        self.concepts = [self._images(task, concept) for concept in task.concepts]
        self.timesteps = DDPMScheduler.from_config(task.base.scheduler_config).config.num_train_timesteps

    def draw(self, purpose: Purpose, index: int) -> Draw:
        """Batch 0, 1, …, of a purpose."""
        count = self.batch_size
        rng, words = generator(self.seed, purpose, index), generator(self.seed, purpose, index, "captions")
        clean, anchors, targets, regions = [], [], [], []
        for position in range(index * count, (index + 1) * count):
            turn, concept = divmod(position, len(self.concepts))
            images, number = self.concepts[concept], self.shown(purpose, concept, turn)
            caption = images.captions[number % len(images.captions)]
            row, view = self._view(images, purpose, number, turn)
            noise = normal((1, *images.posterior.mean.shape[1:]), rng, images.posterior.mean.device)
            clean.append(images.posterior.latents(torch.tensor([row]), noise))
            anchors.append(caption.anchor)
            targets.append(choice(view.hints(), words) + choice(caption.targets, words))
            regions.append(view.region(noise.shape[-1]))
        latents = torch.cat(clean)
        noise = normal(tuple(latents.shape), rng, latents.device)
        timesteps = integers(self.timesteps, count, rng).to(latents.device)
        return Draw(latents, noise, timesteps, anchors, targets, torch.stack(regions).to(latents.device))

    def shown(self, purpose: Purpose, concept: int, turn: int) -> int:
        """The image that a concept shows in its turn 0, 1, …"""
        return shuffled(self.config.anchor_images, turn, self.seed, purpose, concept)

    def _view(self, images: Images, purpose: Purpose, image: int, turn: int) -> tuple[int, View]:
        """The row of the posterior, and the view that it shows."""
        size = images.posterior.mean.shape[-1]
        if not images.views:
            return image, View(size, False, size, 0, 0)
        views, before = images.views[purpose], 0 if purpose == "ablate" else len(images.views["ablate"])
        number = (turn // self.config.anchor_images) % len(views)
        return (before + number) * self.config.anchor_images + image, views[number][image]

    def _images(self, task: UnlearningTask, concept: Concept) -> Images:
        """Made by the base or found in the cache. Raises UserError where the concept has no anchor."""
        config = self.config
        pairs = captions(concept, task.concept_set, config.templates, config.anchor_prompts, config.target_captions)
        recipe = config.image_recipe(task.base.spec.image_size)
        if concept.kind == "nsfw":
            recipe = recipe.model_copy(update={"negative_prompt": concept.phrase})
        prompts = [pairs[number % len(pairs)].anchor for number in range(config.anchor_images)]
        views: dict[Purpose, list[list[View]]] = {}
        if config.augment != "none":  # the prior's images are mirrored at most
            views["ablate"] = [self._views(config.augment, recipe.height, number) for number in range(self.rounds)]
            views["prior"] = [self._views("flip", recipe.height, -1)]
        rows = [each for kind in views.values() for each in kind]
        return Images(image_posterior(task.base, recipe, prompts, task.cache, rows), pairs, views)

    def _views(self, augment: Augmentation, size: int, number: int) -> list[View]:
        images = range(self.config.anchor_images)
        return [draw_view(augment, size, generator(0, "view", number, image)) for image in images]
