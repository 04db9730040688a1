"""What an attack may ask: an edited model and the unedited base behind it, every pass of which is counted.

A *model call* is one sample through the network that predicts noise; the way back, for a gradient, counts as another.
An image is so many calls as its recipe has steps, twice with guidance. Passes of the text encoder have a bound of their
own (`encoder_budget.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.delta import Delta
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor, truth
from efface.models.noise_scheduler import make_scheduler
from efface.models.recipe import Recipe
from efface.models.sampling.decoding import decode
from efface.models.sampling.sampler import denoise
from efface.models.sampling.sampler_hooks import Guidance, hook_of, named_hook
from efface.models.text.text_encoding import encode_prompts


class BudgetExhausted(Exception):
    """An attack has no model calls left for what it wants to do next."""


class NotFinite(Exception):
    """A loss, or what it led to, is not a number any more."""


@dataclass
class Budget:
    """Model calls that may be spent, and have been."""

    calls: int
    spent: int = 0
    unit: str = "model calls"

    def spend(self, calls: int) -> None:
        """Raises BudgetExhausted, and counts nothing, where there are not so many left."""
        if self.spent + calls > self.calls:
            raise BudgetExhausted(f"{self.calls - self.spent} of {self.calls} {self.unit} are left, {calls} needed")
        self.spent += calls


@dataclass(frozen=True)
class Instance:
    """One image that an edited model should not make: a direct prompt of the concept, and a seed."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Attempt:
    """Images that may show the concept, and by what they were made."""

    how: Literal["prompt", "embedding", "trajectory", "weights"]
    images: np.ndarray
    """uint8 (N, H, W, 3), N >= 1."""
    finite: list[bool]
    """Whether all values of each were numbers."""
    prompt: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """How it was made, as JSON."""


class Oracle:
    """The edited model is in place, except inside `unedited()`. Everything is computed in fp32."""

    def __init__(self, base: Base, delta: Delta | None, recipe: Recipe, budget: Budget) -> None:
        self.base, self.delta, self.recipe, self.budget = base, delta, recipe, budget
        self.schedule = DDPMScheduler.from_config(base.scheduler_config)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The base as it is without the delta, for the time of the block."""
        self.base.swap(None)
        try:
            yield
        finally:
            self.base.swap(self.delta)

    def counting(self, predict: NoisePredictor) -> NoisePredictor:
        """The same predictor, on the budget."""

        def call(latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
            has_gradient = torch.is_grad_enabled() and (
                latents.requires_grad or conditioning.encoder_hidden_states.requires_grad
            )
            self.budget.spend(len(latents) * (2 if has_gradient else 1))
            return predict(latents, timestep, conditioning)

        return call

    @property
    def predict(self) -> NoisePredictor:
        """What is in place now predicts, with the sampler hook that belongs to it, on the budget."""
        denoiser, hook = self.base.denoiser, hook_of(self.base)

        def call(latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
            with hook.attached(denoiser):
                return denoiser(latents, timestep, conditioning)

        return self.counting(call)

    @contextmanager
    def guided(
        self, prompt: str, denoiser: Denoiser | None = None, start: int = 0
    ) -> Iterator[tuple[Guidance, NoisePredictor]]:
        """The guidance of an image of this prompt, by the hook of what is in place, and what it predicts with.

        denoiser: the network, where it is not the one in place; start: steps of the image that are done already.
        """
        denoiser, hook = denoiser or self.base.denoiser, hook_of(self.base)
        with hook.attached(denoiser):
            yield hook.guidance([prompt], start), self.counting(denoiser)

    @property
    def calls_per_image(self) -> int:
        """Model calls of an image by the recipe, at most."""
        steps = len(make_scheduler(self.recipe.scheduler, self.base.scheduler_config, self.recipe.steps).timesteps)
        passes = 2 if self.recipe.guidance_scale > 1 else 1
        if self.delta is not None and self.delta.kind == "hook":
            hook, config = named_hook(self.delta)
            passes = max(passes, hook.passes(config))
        return steps * passes

    def encode(self, prompt: str) -> Conditioning:
        """(1, 77, D), without gradient."""
        return encode_prompts(self.base, [prompt])

    def noise(self, seed: int | torch.Generator) -> Tensor:
        """The noise that an image of this seed begins with, (1, C, h, w); or the next that a generator draws."""
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        return torch.randn((1, *self._latent_shape), generator=generator).to(self.base.device)

    @torch.no_grad()
    def latents(self, cond: Conditioning, seed: int, prompt: str = "", denoiser: Denoiser | None = None) -> Tensor:
        """Latents (1, C, h, w) of the image that the sampler makes by the recipe.

        prompt: the text of `cond`, which some sampler hooks read; "" where it has none. denoiser: see `guided`.
        """
        uncond, generators = self.encode(self.recipe.negative_prompt), [torch.Generator().manual_seed(seed)]
        with self.guided(prompt, denoiser) as (guidance, predict):
            return denoise(self.base, self.recipe, predict, guidance, cond, uncond, generators)

    def attempt(
        self,
        cond: Conditioning,
        seed: int,
        how: Literal["prompt", "embedding", "trajectory", "weights"] = "prompt",
        prompt: str | None = None,
        **facts: Any,
    ) -> Attempt:
        """The image of a conditioning and a seed."""
        return self.decoded(self.latents(cond, seed, prompt or ""), how, prompt, **facts)

    @torch.no_grad()
    def decoded(
        self,
        latents: Tensor,
        how: Literal["prompt", "embedding", "trajectory", "weights"] = "trajectory",
        prompt: str | None = None,
        **facts: Any,
    ) -> Attempt:
        """The images of some latents (N, C, h, w)."""
        images, finite = decode(self.base, latents)
        return Attempt(how, images, finite, prompt, facts)

    def noised(self, latents: Tensor, timesteps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_t of latents (B, C, h, w) at timesteps (B,), and what a model that errs nowhere predicts there."""
        x_t = self.schedule.add_noise(latents, noise, timesteps)
        return x_t, truth(self.schedule, latents, noise, timesteps)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        factor = 2 ** (len(self.base.vae.config.block_out_channels) - 1)
        return self.base.unet.config.in_channels, self.recipe.height // factor, self.recipe.width // factor


def checked(loss: Tensor) -> Tensor:
    """The loss. Raises NotFinite where it is no number."""
    if not bool(loss.detach().isfinite().all()):
        raise NotFinite("the loss is not a number")
    return loss
