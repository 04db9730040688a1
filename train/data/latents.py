"""Images of the base as training data: made once, kept as the VAE's latents.

An image is the base's own, image i of a list of prompts having seed i: the same for every job, whatever its
seed, so that jobs with one anchor share one file in the cache. In a chain "the base" is the model that the request
before left, and has files of its own. The processes of a group share the drawing.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor

from efface.errors import StorageError
from efface.files import content_id, write_atomic
from efface.models.base import Base
from efface.models.noise_predictor import truth
from efface.models.recipe import Dtype, Recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.train.collectives import all_gather, distributed_map
from efface.train.data.views import View
from efface.train.method import MethodConfig
from efface.train.seeds import integers, normal


class ImageConfig(MethodConfig):
    """The settings of a method that trains on images which the base makes."""

    image_scheduler: str = Field("dpm++", description="scheduler of the images that the base makes")
    image_steps: int = Field(25, ge=1, le=1000, description="inference steps of these images")
    image_guidance_scale: float = Field(7.5, ge=0, description="classifier-free guidance of these images")
    image_dtype: Dtype = Field("float32", description="of the UNet and the VAE's decoder that make these images")

    def image_recipe(self, image_size: int) -> Recipe:
        """What these images are made by; `image_size` in pixels."""
        return Recipe(
            name="training images",
            scheduler=self.image_scheduler,
            steps=self.image_steps,
            guidance_scale=self.image_guidance_scale,
            height=image_size,
            width=image_size,
            dtype=self.image_dtype,
            vae_dtype=self.image_dtype,
        )


@dataclass(frozen=True)
class Posterior:
    """The VAE's posterior of N images: mean and standard deviation of their latents, (N, 4, h, w) fp32."""

    mean: Tensor
    std: Tensor
    scaling_factor: float

    def latents(self, chosen: Tensor, noise: Tensor) -> Tensor:
        """Latents of images `chosen` (B,), drawn with unit `noise` (B, 4, h, w) and scaled for the UNet."""
        chosen = chosen.to(self.mean.device)
        return (self.mean[chosen] + self.std[chosen] * noise) * self.scaling_factor


@dataclass(frozen=True)
class Noised:
    """Images with forward noise, and what should be predicted for them. B samples, fp32."""

    latents: Tensor  # (B, 4, h, w)
    timesteps: Tensor  # (B,), int64
    truth: Tensor  # (B, 4, h, w): the noise, or the velocity


def noised(
    images: Posterior,
    chosen: Sequence[int],
    scheduler: DDPMScheduler,
    rng: torch.Generator,
    likelihood: Tensor | None = None,
) -> Noised:
    """Images `chosen`, each at a timestep of its own. `scheduler` has the base's `scheduler_config`.

    Timesteps are uniform, or as likely as `likelihood` (T,) says, which need not sum to 1.
    """
    shape, device = (len(chosen), *images.mean.shape[1:]), images.mean.device
    clean = images.latents(torch.tensor(list(chosen)), normal(shape, rng, device))
    return add_noise(clean, scheduler, rng, likelihood)


def add_noise(
    clean: Tensor, scheduler: DDPMScheduler, rng: torch.Generator, likelihood: Tensor | None = None
) -> Noised:
    """Latents (B, 4, h, w), scaled for the UNet, each at a timestep of its own, drawn as for `noised`."""
    noise = normal(tuple(clean.shape), rng, clean.device)
    if likelihood is None:
        timesteps = integers(scheduler.config.num_train_timesteps, len(clean), rng).to(clean.device)
    else:
        timesteps = torch.multinomial(likelihood, len(clean), replacement=True, generator=rng).to(clean.device)
    return Noised(scheduler.add_noise(clean, noise, timesteps), timesteps, truth(scheduler, clean, noise, timesteps))


def image_posterior(
    base: Base, recipe: Recipe, prompts: Sequence[str], cache: Path | None, views: Sequence[Sequence[View]] = ()
) -> Posterior:
    """The base's images of `prompts`, image i with seed i; from a file in `cache` where all processes have one.

    With `views` row r N + i is image i in its view r: `views[r][i]`.
    """
    seen = [[asdict(view) for view in each] for each in views]
    key = content_id([base.state_id, recipe.id, list(prompts), *([seen] if seen else [])])
    file = cache / f"latents-{key}.safetensors" if cache else None
    with base.in_turn(key):  # what one job makes, the others find
        if all(all_gather(file is not None and file.is_file())) and file:
            found = safetensors.torch.load(file.read_bytes())
        else:
            found = _make(base, recipe, [ImageRequest(prompt, seed) for seed, prompt in enumerate(prompts)], views)
            if file:
                with suppress(StorageError):  # a cache that cannot be written costs time only
                    write_atomic(file, safetensors.torch.save(found))
    mean, std = (found[name].to(base.device) for name in ("mean", "std"))
    return Posterior(mean, std, base.vae.config.scaling_factor)


def _make(
    base: Base, recipe: Recipe, requests: Sequence[ImageRequest], views: Sequence[Sequence[View]]
) -> dict[str, Tensor]:
    starts = range(0, len(requests), recipe.largest_batch)

    def encoded(start: int) -> list[tuple[Tensor, Tensor]]:
        """Of each view of a batch of images."""
        images = sample(base, recipe, requests[start : start + recipe.largest_batch])
        if not views:
            return [_encode(base, images / np.float32(127.5) - np.float32(1))]
        return [
            _encode(base, np.stack([view.pixels(image) for view, image in zip(each[start:], images, strict=False)]))
            for each in views
        ]

    batches = distributed_map(list(starts), encoded)
    mean, std = (
        torch.cat([batch[row][part] for row in range(max(1, len(views))) for batch in batches]).contiguous()
        for part in (0, 1)
    )
    return {"mean": mean, "std": std}


@torch.no_grad()
def _encode(base: Base, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
    """fp32 (B, H, W, 3) in [-1, 1] to mean and standard deviation, (B, 4, h, w) fp32 on the CPU."""
    posterior = base.vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(base.device)).latent_dist
    return posterior.mean.float().cpu(), posterior.std.float().cpu()
