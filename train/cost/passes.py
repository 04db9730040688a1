"""The forward passes a batch of each method takes, as rows: what memory and operations are reckoned from.

One row is one latent with one prompt. Tests hold these numbers against the methods at work.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from efface.errors import UserError
from efface.models.activations import pass_cost, unet_pass_cost
from efface.models.adapters import add_adapters
from efface.models.base import RANDOM, BaseSpec, architecture
from efface.models.loading import empty_components
from efface.models.model_files import DIFFUSERS_FILES, locate
from efface.models.parameter_groups import select
from efface.models.recipe import Recipe
from efface.models.scheduler import make_scheduler
from efface.train.method import Method

IMAGE_BATCH_SIZE: int = Recipe.model_fields["batch_size"].default


@dataclass(frozen=True)
class ModelShapes:
    """A base as shapes without numbers, on the meta device."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    image_size: int

    @property
    def latent_size(self) -> int:
        return self.image_size // self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


@dataclass(frozen=True)
class ForwardPasses:
    """Of one batch of a gradient method."""

    trained: int
    """Rows of the pass with a gradient."""
    frozen: int
    """Rows of the largest pass without one: a step of a roll-out, or the teacher's."""
    mean_frozen_rows: float
    """Rows of all passes without a gradient, on average."""
    latent_sizes: tuple[int, ...]
    """Heights and widths of the latents are drawn of these."""
    images: int
    """Images of the base that are drawn at once before the first step; 0: none."""


@lru_cache(maxsize=4)
def model_shapes(base: BaseSpec) -> ModelShapes:
    """The shapes of a base from its configs alone. Raises NotFetched where they are on the hub."""
    if base.source.startswith(RANDOM):
        folder = architecture(base.source.removeprefix(RANDOM))
    elif base.architecture:
        folder = architecture(base.architecture)
    else:
        folder = locate(base.source, DIFFUSERS_FILES, fetch=False)
    return ModelShapes(*empty_components(folder), base.image_size)


def forward_passes(method: Method, size: ModelShapes) -> ForwardPasses | None:
    """None for a closed form, which takes no pass. Raises UserError for a method that is not told of here."""
    if method.name not in METHOD_PASSES:
        raise UserError(f"the passes of method '{method.name}' are not known, only of {', '.join(METHOD_PASSES)}")
    return METHOD_PASSES[method.name](method.config, size)


def _esd(config: Any, size: ModelShapes) -> ForwardPasses:
    rows, guided = config.batch_size, 2 if config.guidance_scale > 1 else 1
    teacher_rows = 3 if config.erase_from else 2
    rollout = guided * (config.rollout_steps - 1) / 2  # stopped before step 0, 1, … or the last
    return ForwardPasses(
        trained=rows,
        frozen=rows * max(guided if config.rollout_steps > 1 else 0, teacher_rows),
        mean_frozen_rows=rows * (rollout + teacher_rows),
        latent_sizes=(size.latent_size,),
        images=0,
    )


def _ca(config: Any, size: ModelShapes) -> ForwardPasses:
    frozen = config.batch_size if config.objective == "model" else 0
    return ForwardPasses(
        trained=config.batch_size * (2 if config.prior_weight > 0 else 1),
        frozen=frozen,
        mean_frozen_rows=frozen,
        latent_sizes=(size.latent_size,),
        images=min(IMAGE_BATCH_SIZE, config.anchor_images),
    )


def _fade(config: Any, size: ModelShapes) -> ForwardPasses:
    listed = isinstance(config.neighbours, tuple)
    neighbours = len(config.neighbours) if listed else config.neighbour_count
    prompts, guided = 1 + len(config.sentences) + neighbours, 2 if config.denoising_guidance > 1 else 1
    rollout = guided * config.denoising_steps / 2  # stopped before step 1, 2, … or the last
    latent_sizes = tuple(side // size.pixels_per_latent for side in config.sizes or (size.image_size,))
    return ForwardPasses(
        trained=config.batch_size * (1 + neighbours),
        frozen=config.batch_size * prompts * guided,
        mean_frozen_rows=config.batch_size * prompts * (rollout + 1),
        latent_sizes=latent_sizes,
        images=IMAGE_BATCH_SIZE if config.neighbours == "computed" else 0,
    )


def _uce(config: Any, size: ModelShapes) -> None:
    return None


METHOD_PASSES: dict[str, Callable[[Any, ModelShapes], ForwardPasses | None]] = {
    "ca": _ca,
    "esd": _esd,
    "fade": _fade,
    "uce": _uce,
}


def trained_tensors(method: Method, size: ModelShapes) -> tuple[UNet2DConditionModel, dict[str, nn.Parameter]]:
    """A UNet with the method's adapters where it has some, and in it what is trained, by name."""
    if method.delta_kind != "adapter":
        return size.unet, _of_unet(select({"unet": size.unet}, method.group))
    unet = copy.deepcopy(size.unet)
    layers = [name.removesuffix(".weight") for name in select({"unet": unet}, method.group)]
    adapters = add_adapters({"unet": unet}, layers, method.config.rank, method.config.alpha, torch.Generator())
    trained = {id(parameter) for parameter in adapters.parameters().values()}
    return unet, {name: parameter for name, parameter in unet.named_parameters() if id(parameter) in trained}


def _of_unet(chosen: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name.removeprefix("unet."): parameter for name, parameter in chosen.items()}


def step_flops(method: Method, size: ModelShapes, checkpointing: bool = False) -> float:
    """Floating-point operations of one optimiser step, on average; preparation is not in it."""
    passes = forward_passes(method, size)
    if passes is None:
        return 0.0
    unet, trained = trained_tensors(method, size)
    shapes = list(product(passes.latent_sizes, repeat=2))
    total = 0.0
    for height, width in shapes:
        one = cached_unet_pass_cost(unet, tuple(trained), 1, height, width, "fp32", checkpointing)
        total += passes.trained * (one.forward_flops + one.backward_flops) + passes.mean_frozen_rows * one.forward_flops
    return float(method.config.gradient_accumulation_steps * total / len(shapes))


def preparation_flops(
    method: Method, size: ModelShapes, recipe: Recipe, scheduler_config: dict[str, Any], candidates: int
) -> float:
    """Operations before the first step on one concept, nothing of it in a cache: images that the base draws.

    `recipe` is the base's own, with which FADE draws images of the concept and of `candidates` others; CA draws its
    anchor's by settings of its own. Text and image encoders, some thousandths of it, are not counted.
    """
    config: Any = method.config
    if method.name == "ca":
        scheduler, steps, guided = config.image_scheduler, config.image_steps, config.image_guidance_scale > 1
        images = config.anchor_images
    elif method.name == "fade" and config.neighbours == "computed":
        scheduler, steps, guided = recipe.scheduler, recipe.steps, recipe.guidance_scale > 1
        images = (1 + candidates) * config.images_per_candidate
    else:
        return 0.0
    with torch.device("meta"):
        latents = torch.zeros(1, size.vae.config.latent_channels, size.latent_size, size.latent_size)
        pixels = torch.zeros(1, 3, size.image_size, size.image_size)
    calls = len(make_scheduler(scheduler, scheduler_config, steps).timesteps) * (2 if guided else 1)
    each = calls * cached_unet_pass_cost(size.unet, (), 1, size.latent_size, size.latent_size).forward_flops
    each += pass_cost(size.vae, lambda: size.vae.decode(latents).sample, False).forward_flops
    if method.name == "ca":
        each += pass_cost(size.vae, lambda: size.vae.encode(pixels).latent_dist.mean, False).forward_flops
    return float(images * each)


cached_unet_pass_cost = lru_cache(maxsize=64)(unet_pass_cost)
"""`unet_pass_cost`, counted once; what is trained is given as a tuple."""
