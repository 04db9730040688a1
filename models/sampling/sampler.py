"""The sampler: an image is a function of (model, prompt, seed, recipe), and of nothing else.

So every image has its own CPU generator, every prompt is encoded by itself, and batches have one fixed shape,
the last one padded. On a CPU in fp32 that holds bit for bit. (A recipe may leave the size of batches to the memory, and
so the last bits to the machine.)
"""

import inspect
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor
from efface.models.noise_scheduler import make_scheduler
from efface.models.prompt_projections import prompts_projected_once
from efface.models.recipe import Recipe
from efface.models.sampling.batch_size import batch_size
from efface.models.sampling.decoding import Decoding, overlapping
from efface.models.sampling.deep_cache import DeepCached
from efface.models.sampling.sampler_hooks import Guidance, SamplerHook, hook_of
from efface.models.sampling.token_merging import tokens_merged
from efface.models.text.text_encoding import encode_prompts


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
    on_images: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:
    """One image a request: uint8 (N, H, W, 3).

    `on_batch(n)` is called after every batch with the number of images done in it, `on_images` with the images
    themselves, `on_not_finite(i)` for every request of whose image some values were no numbers. What the images took is
    added to `cost`. Raises UserError for an unknown scheduler.
    """
    cost, begin = cost or SamplingCost(), time.perf_counter()
    embeddings = {prompt: encode_prompts(base, [prompt]) for prompt in dict.fromkeys(r.prompt for r in requests)}
    uncond = encode_prompts(base, [recipe.negative_prompt])
    size = batch_size(base, recipe, len(requests))
    images: list[np.ndarray] = []
    coming: deque[tuple[int, Decoding]] = deque()

    def take() -> None:
        """The oldest batch that is being decoded."""
        count, decoding = coming.popleft()
        decoded, finite = decoding.result()
        start = sum(map(len, images))
        images.append(decoded[:count])
        for i in range(count):
            if on_not_finite and not finite[i]:
                on_not_finite(start + i)
        if on_batch:
            on_batch(count)
        if on_images:
            on_images(images[-1])

    with _predictor(base, recipe) as (hook, new_predictor):
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            padded = [*batch, *[batch[-1]] * (size - len(batch))]
            cond = Conditioning.cat([embeddings[request.prompt] for request in padded])
            generators = [torch.Generator().manual_seed(request.seed) for request in padded]
            guidance, predict = hook.guidance([request.prompt for request in padded]), _Counted(new_predictor())
            latents = denoise(base, recipe, predict, guidance, cond, uncond, generators)
            coming.append((len(batch), Decoding(base, latents, recipe.vae_dtype)))
            cost.unet_rows += predict.rows * len(batch) // size
            if len(coming) > overlapping(base.device):
                take()
        while coming:
            take()
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


class _Counted:
    """A predictor that counts the rows it is given."""

    def __init__(self, predict: NoisePredictor) -> None:
        self.predict, self.rows = predict, 0

    def __call__(self, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        self.rows += len(latents)
        return self.predict(latents, timestep, conditioning)


@contextmanager
def _predictor(base: Base, recipe: Recipe) -> Iterator[tuple[SamplerHook, Callable[[], NoisePredictor]]]:
    """The base's hook; and a new predictor for each batch, in the recipe's dtype, with the hook attached to it.

    The base keeps its bits.
    """
    dtype, compiled = getattr(torch, recipe.dtype), recipe.compiled and base.device.type == "cuda"
    hook, acts = hook_of(base), base.applied is not None and base.applied.kind == "hook"
    copied = base.sampling_copy(dtype, compiled) if compiled or dtype != torch.float32 else None
    denoiser = copied.denoiser if copied else base.denoiser
    hooked = acts or recipe.token_merging > 0
    projecting = copied.predictor(hooked) if copied else prompts_projected_once(denoiser)
    with hook.attached(denoiser), tokens_merged(denoiser, recipe.token_merging), projecting as predictor:
        if recipe.deep_cache > 1 and not acts:
            yield hook, lambda: DeepCached(predictor, denoiser.module, recipe.deep_cache)
        else:
            yield hook, lambda: predictor
