"""The model's prediction, as methods see it, and the states of a trajectory at which they need it.

Most models predict the noise eps. Some, Stable Diffusion 2.1 among them, predict the velocity v = alpha eps - sigma x_0
instead (Salimans and Ho, arXiv 2202.00512), for x_t = alpha x_0 + sigma eps; so eps = alpha v + sigma x_t. Where
predictions for one x_t are mixed with weights that sum to one, as guidance and the targets of erasure do, the same
mixture of v stands for that of eps. So formulas are computed in what the model predicts; a loss in v is one in eps,
each step weighed with 1 / alpha^2, as such models are trained. Schedulers know which it is from the base's config.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.models.noise_scheduler import new_scheduler_like


class NoisePredictor(Protocol):
    """eps(x_t, t, c), or v: latents (B, 4, h, w), timestep (int, or (B,)), conditioning of B rows."""

    def __call__(self, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor: ...


def classifier_free_guidance(
    predict: NoisePredictor,
    latents: Tensor,
    timestep: Any,
    cond: Conditioning,
    uncond: Conditioning,
    guidance_scale: float,
) -> Tensor:
    """Classifier-free guidance, eps(0) + s (eps(c) - eps(0)), in one forward of 2 B; at s <= 1, eps(c) alone.

    `cond` and `uncond` have B rows, or one for all.
    """
    cond = cond.expand(len(latents))
    if guidance_scale <= 1:
        return predict(latents, timestep, cond)
    both = Conditioning.cat([uncond.expand(len(latents)), cond])
    eps_uncond, eps_cond = predict(torch.cat([latents, latents]), timestep, both).chunk(2)
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


@torch.no_grad()
def partial_denoise(
    predict: NoisePredictor,
    scheduler: SchedulerMixin,
    cond: Conditioning,
    uncond: Conditioning,
    noise: Tensor,
    guidance_scale: float,
    stop: int,
) -> tuple[Tensor, Tensor]:
    """The state before step `stop` and its timestep: x_t as the network takes it, and t = scheduler.timesteps[stop].

    See `denoise_past`.
    """
    (state,) = denoise_past(predict, scheduler, cond, uncond, noise, guidance_scale, [stop])
    return state


@torch.no_grad()
def denoise_past(
    predict: NoisePredictor,
    scheduler: SchedulerMixin,
    cond: Conditioning,
    uncond: Conditioning,
    noise: Tensor,
    guidance_scale: float,
    stops: Sequence[int],
) -> list[tuple[Tensor, Tensor]]:
    """The states of one trajectory before each of the steps `stops`, in any order, and their timesteps.

    `noise` is (B, 4, h, w) of unit variance; a stop of 0 gives it back, with the first timestep. So x_t is
    exactly as noisy as t says: the first code of ESD and its heirs stop two steps later than the t they use.
    `scheduler` has its timesteps set, and is left as it is. No gradient.
    """
    scheduler = new_scheduler_like(scheduler)
    latents, found = noise * scheduler.init_noise_sigma, dict[int, tuple[Tensor, Tensor]]()
    for step, timestep in enumerate(scheduler.timesteps[: max(stops) + 1]):
        latent_model_input = scheduler.scale_model_input(latents, timestep)
        if step in stops:
            found[step] = latent_model_input, timestep
        if step == max(stops):
            break
        noise_pred = classifier_free_guidance(
            predict, latent_model_input, timestep.to(noise.device), cond, uncond, guidance_scale
        )
        latents = scheduler.step(noise_pred, timestep, latents).prev_sample
    return [found[stop] for stop in stops]


def truth(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a model that errs nowhere predicts for `latents` noised with `noise`: that, or the velocity; (B, 4, h, w).

    `scheduler` has the base's `scheduler_config`, timesteps are (B,).
    """
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return noise


def noise_scale(scheduler_config: dict[str, Any]) -> Callable[[Any], float]:
    """How much noise a unit of difference between two predictions means at a timestep: 1, or alpha for velocities.

    Between whole timesteps sigma / alpha is interpolated linearly, as diffusers does.
    """
    scheduler = DDPMScheduler.from_config(scheduler_config)
    if scheduler.config.prediction_type != "v_prediction":
        return lambda timestep: 1.0
    kept = scheduler.alphas_cumprod.double().numpy()
    with np.errstate(divide="ignore"):
        ratios = np.sqrt((1 - kept) / kept)
    return lambda timestep: float(1 / np.sqrt(1 + np.interp(float(timestep), np.arange(len(ratios)), ratios) ** 2))
