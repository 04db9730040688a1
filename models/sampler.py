"""The sampler: an image is a function of (model, prompt, seed, recipe), and of nothing else.

So every image has its own CPU generator, every prompt is encoded by itself, and batches have one fixed shape,
the last one padded. On a CPU in fp32 that holds bit for bit.
"""

import copy
import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.noise_scheduler import make_scheduler
from efface.models.recipe import Recipe
from efface.models.sampler_hooks import Guidance, hook_of
from efface.models.text_encoding import encode_prompts


@dataclass(frozen=True)
class ImageRequest:
    prompt: str
    seed: int


@dataclass
class SamplingCost:
    """What images took, added up from call to call."""

    images: int = 0
    unet_rows: int = 0
    """Passes of the denoiser, each of one latent with one prompt: plain guidance takes two a step."""
    seconds: float = 0.0
    """From the prompts to the pixels."""


@torch.no_grad()
def sample(
    base: Base,
    recipe: Recipe,
    requests: Sequence[ImageRequest],
    on_batch: Callable[[int], None] | None = None,
    on_not_finite: Callable[[int], None] | None = None,
    cost: SamplingCost | None = None,
) -> np.ndarray:
    """One image a request: uint8 (N, H, W, 3).

    `on_batch(n)` is called after every batch with the number of images done in it, `on_not_finite(i)` for every
    request of whose image some values were no numbers. What the images took is added to `cost`. Raises UserError for an
    unknown scheduler.
    """
    cost, begin = cost or SamplingCost(), time.perf_counter()
    embeddings = {prompt: encode_prompts(base, [prompt]) for prompt in dict.fromkeys(r.prompt for r in requests)}
    uncond = encode_prompts(base, [recipe.negative_prompt])
    denoiser, hook = _denoiser(base, recipe), hook_of(base)
    images = []
    with hook.attached(denoiser):
        for start in range(0, len(requests), recipe.batch_size):
            batch = requests[start : start + recipe.batch_size]
            padded = [*batch, *[batch[-1]] * (recipe.batch_size - len(batch))]
            cond = Conditioning.cat([embeddings[request.prompt] for request in padded])
            generators = [torch.Generator().manual_seed(request.seed) for request in padded]
            guidance, predict = hook.guidance([request.prompt for request in padded]), _Counted(denoiser)
            decoded, finite = decode(base, denoise(base, recipe, predict, guidance, cond, uncond, generators))
            cost.unet_rows += predict.rows * len(batch) // recipe.batch_size
            images.append(decoded[: len(batch)])
            for i in range(len(batch)):
                if on_not_finite and not finite[i]:
                    on_not_finite(start + i)
            if on_batch:
                on_batch(len(batch))
    cost.images += len(requests)
    cost.seconds += time.perf_counter() - begin
    return np.concatenate(images) if images else np.zeros((0, recipe.height, recipe.width, 3), np.uint8)


def denoise(
    base: Base,
    recipe: Recipe,
    predict: NoisePredictor,
    guidance: Guidance,
    cond: Conditioning,
    uncond: Conditioning,
    generators: list[torch.Generator],
) -> Tensor:
    """Latents (B, 4, h, w), fp32, of a batch. An image's generator gives its noise, then the scheduler's."""
    scheduler = make_scheduler(recipe.scheduler, base.scheduler_config, recipe.steps)
    factor = 2 ** (len(base.vae.config.block_out_channels) - 1)
    shape = (1, base.unet.config.in_channels, recipe.height // factor, recipe.width // factor)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    latents = noise.to(base.device) * scheduler.init_noise_sigma
    own_noise: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        own_noise["generator"] = generators
    for timestep in scheduler.timesteps:
        latent_model_input = scheduler.scale_model_input(latents, timestep)
        noise_pred = guidance(
            predict, latent_model_input, timestep.to(base.device), cond, uncond, recipe.guidance_scale
        )
        latents = scheduler.step(noise_pred, timestep, latents, **own_noise).prev_sample
    return latents


def decode(base: Base, latents: Tensor) -> tuple[np.ndarray, list[bool]]:
    """Latents (B, 4, h, w) as images, uint8 (B, H, W, 3), and whether all values of each were numbers.

    No number becomes grey, with a warning.
    """
    pixels = base.vae.decode(latents / base.vae.config.scaling_factor).sample
    finite = [bool(image.isfinite().all()) for image in pixels]
    if not all(finite):
        warnings.warn("the model made images with values that are not numbers; they are shown as grey", stacklevel=2)
        pixels = pixels.nan_to_num(0.0, 1.0, -1.0)
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round()
    return levels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy(), finite


class _Counted:
    """A denoiser that counts the rows it is given."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.rows = denoiser, 0

    def __call__(self, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        self.rows += len(latents)
        return self.denoiser(latents, timestep, conditioning)


def _denoiser(base: Base, recipe: Recipe) -> Denoiser:
    """The denoiser in the recipe's dtype; where that is not fp32 it is a copy, as the base keeps its bits."""
    denoiser = base.denoiser
    if recipe.dtype == "float32":
        return denoiser
    return denoiser.wrapped(torch.nn.Module.to(copy.deepcopy(denoiser.module), getattr(torch, recipe.dtype)))
