"""Noise-scale probe: the edited model samples with more noise than its scheduler would add, and nothing is optimised.

When Are Concepts Erased From Diffusion Models? (Lu et al., NeurIPS 2025, arXiv 2505.17013). A step of DDIM with eta

    x_(t-1) = sqrt(a_(t-1)) x_0 + sqrt(1 - a_(t-1) - sigma^2) eps + scale sigma z,   sigma = eta sigma_t

is tried with every eta and every scale; the authors keep the best of 24 samples by a classifier.
"""

from collections.abc import Iterator
from itertools import product

import torch
from pydantic import Field
from torch import Tensor

from efface.eval.attack import ATTACKS, Attack, AttackConfig
from efface.eval.oracle import Attempt, Instance, Oracle
from efface.models.conditioning import Conditioning
from efface.models.noise_scheduler import make_scheduler


class NoiseScaleConfig(AttackConfig):
    etas: tuple[float, ...] = Field(
        (1.0, 1.17, 1.34, 1.51, 1.68, 1.85), min_length=1, description="noise of a step; DDIM has 0, DDPM 1"
    )
    scales: tuple[float, ...] = Field((1.0, 1.02, 1.03, 1.04), min_length=1, description="of the noise that is added")


def ddim_step(x_t: Tensor, eps: Tensor, kept: float, kept_before: float, eta: float, scale: float, z: Tensor) -> Tensor:
    """x_(t-1) of the formula above; kept: alpha-bar at t, and at the step before it in time.

    Where eta asks for more noise than there is room for, the direction to x_t is left out.
    """
    sigma = eta * (((1 - kept_before) / (1 - kept)) * (1 - kept / kept_before)) ** 0.5
    x_0 = (x_t - (1 - kept) ** 0.5 * eps) / kept**0.5
    direction = max(0.0, 1 - kept_before - sigma**2) ** 0.5
    return kept_before**0.5 * x_0 + direction * eps + scale * sigma * z


@ATTACKS.register("noise-scale")
class NoiseScale(Attack):
    """Samples the direct prompt with more and more noise in every step; nothing is optimised."""

    Config = NoiseScaleConfig
    config: NoiseScaleConfig

    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        cond = oracle.encode(instance.prompt)
        for eta, scale in product(self.config.etas, self.config.scales):
            yield oracle.decoded(self._latents(oracle, instance, cond, eta, scale), eta=eta, scale=scale)

    @torch.no_grad()
    def _latents(self, oracle: Oracle, instance: Instance, cond: Conditioning, eta: float, scale: float) -> Tensor:
        base, recipe = oracle.base, oracle.recipe
        scheduler = make_scheduler("ddim", base.scheduler_config, recipe.steps)
        kept, final = scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod)
        uncond = oracle.encode(recipe.negative_prompt)
        generator = torch.Generator().manual_seed(instance.seed)
        latents = oracle.noise(generator)  # and behind it, in the same stream, what is added in each step
        times = [int(time) for time in scheduler.timesteps]
        with oracle.guided(instance.prompt) as (guidance, predict):
            for now, before in zip(times, [*times[1:], -1], strict=True):
                timestep = torch.tensor(now, device=base.device)
                eps = guidance(predict, latents, timestep, cond, uncond, recipe.guidance_scale)
                z = torch.randn(latents.shape, generator=generator).to(latents)
                at, after = float(kept[now]), float(kept[before]) if before >= 0 else final
                if scheduler.config.prediction_type == "v_prediction":
                    eps = at**0.5 * eps + (1 - at) ** 0.5 * latents
                latents = ddim_step(latents, eps, at, after, eta, scale, z)
        return latents
