"""Models that predict the velocity: whatever is computed with their predictions is what it is with the noise's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.hooks.sld import SafetyGuidance, SLDSettings
from efface.models.noise_predictor import (
    NoisePredictor,
    classifier_free_guidance,
    noise_scale,
    partial_denoise,
    truth,
)
from efface.models.noise_scheduler import make_scheduler
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import denoise
from efface.models.sampling.sampler_hooks import Guidance

VELOCITY = {"prediction_type": "v_prediction"}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
KEPT = torch.cumprod(1 - BETAS, 0).numpy()
SIGMAS = np.sqrt((1 - KEPT) / KEPT)
"""Stable Diffusion's noise schedule, and sigma / alpha of it."""


def alpha_sigma(timestep: Any) -> tuple[float, float]:
    """Of x_t = alpha x_0 + sigma eps, between whole timesteps with sigma / alpha in between."""
    alpha = 1 / np.sqrt(1 + np.interp(float(timestep), np.arange(1000), SIGMAS) ** 2)
    return float(alpha), float(np.sqrt(1 - alpha**2))


def in_velocities(predict: NoisePredictor) -> NoisePredictor:
    """The same model, saying v = (eps - sigma x_t) / alpha: arXiv 2202.00512 with x_0 = (x_t - sigma eps) / alpha."""

    def velocity(latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        alpha, sigma = alpha_sigma(timestep)
        return (predict(latents, timestep, conditioning) - sigma * latents) / alpha

    return velocity


@pytest.fixture
def conditions() -> list[Conditioning]:
    """Of two prompts, none and an unsafe one: (2, 77, 16), (1, 77, 16), (1, 77, 16)."""
    generator = torch.Generator().manual_seed(0)
    return [Conditioning(torch.randn(count, 77, 16, generator=generator)) for count in (2, 1, 1)]


def sld(unsafe: Conditioning, config: dict[str, Any]) -> SafetyGuidance:
    """With a threshold and a scale that part the latents in about two halves."""
    return SafetyGuidance(SLDSettings(warm_up=1, threshold=0.0, scale=5), unsafe, noise_scale(config))


def negative(unsafe: Conditioning, config: dict[str, Any]) -> Guidance:
    return lambda predict, latents, timestep, cond, uncond, scale: classifier_free_guidance(
        predict, latents, timestep, cond, unsafe, scale
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "hook", [lambda unsafe, config: classifier_free_guidance, negative, sld], ids=["none", "negative", "sld"]
)
@pytest.mark.parametrize(
    ("scheduler", "config"),
    [("ddim", {}), ("heun", {}), ("dpm++", {}), ("euler", {}), ("euler", {"timestep_spacing": "linspace"})],
)
def test_a_model_makes_the_same_latents_in_either_terms(
    tiny_base: Base, conditions: list[Conditioning], scheduler: str, config: dict[str, Any], hook: Callable[..., Any]
) -> None:
    """PNDM is left out: it mixes the predictions of several steps as they are, and is another one in velocities."""
    cond, uncond, unsafe = conditions
    recipe = Recipe(name="t", scheduler=scheduler, steps=7, guidance_scale=3, height=16, width=16, batch_size=2)
    noise, base = tiny_base.denoiser, replace(tiny_base, scheduler_config=tiny_base.scheduler_config | config)
    other = replace(base, scheduler_config=base.scheduler_config | VELOCITY)
    made = []
    for one, predict in ((base, noise), (other, in_velocities(noise))):
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        guidance = hook(unsafe, one.scheduler_config)
        made.append(denoise(one, recipe, predict, guidance, cond, uncond, generators))
    torch.testing.assert_close(*made, atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_the_hooks_differ_from_plain_guidance(tiny_base: Base, conditions: list[Conditioning]) -> None:
    """Else the test above would say nothing of them."""
    cond, uncond, unsafe = conditions
    recipe = Recipe(name="t", scheduler="ddim", steps=7, guidance_scale=3, height=16, width=16, batch_size=2)
    made = [
        denoise(tiny_base, recipe, tiny_base.denoiser, guidance, cond, uncond, [torch.Generator()] * 2)
        for guidance in (classifier_free_guidance, negative(unsafe, {}), sld(unsafe, {}))
    ]
    assert all((one - made[0]).abs().max() > 0.1 for one in made[1:])


@torch.no_grad()
def test_a_partial_denoising_ends_at_the_same_state(tiny_base: Base, conditions: list[Conditioning]) -> None:
    noise, predict = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), tiny_base.denoiser
    states = [
        partial_denoise(
            one, make_scheduler("ddim", tiny_base.scheduler_config | config, 9), *conditions[:2], noise, 3, 6
        )
        for one, config in ((predict, {}), (in_velocities(predict), VELOCITY))
    ]
    assert states[0][1] == states[1][1]
    torch.testing.assert_close(states[0][0], states[1][0], atol=2e-3, rtol=2e-3)


def test_the_truth_is_the_noise_or_the_velocity(tiny_base: Base) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([1, 500, 999])
    scheduler, velocity = (DDPMScheduler.from_config(tiny_base.scheduler_config | config) for config in ({}, VELOCITY))
    assert truth(scheduler, clean, noise, timesteps) is noise
    for row, timestep in enumerate(timesteps):
        alpha, sigma = alpha_sigma(timestep)
        found = truth(velocity, clean, noise, timesteps)[row]
        torch.testing.assert_close(found, alpha * noise[row] - sigma * clean[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("timestep", [0, 1, 500, 999, 3.25, torch.tensor(7)])
def test_a_difference_of_velocities_is_one_of_noise_times_alpha(tiny_base: Base, timestep: Any) -> None:
    assert noise_scale(tiny_base.scheduler_config)(timestep) == 1.0
    scale = noise_scale(tiny_base.scheduler_config | VELOCITY)(timestep)
    assert scale == pytest.approx(alpha_sigma(timestep)[0], rel=1e-4)


def test_where_there_is_noise_alone_no_difference_counts(tiny_base: Base) -> None:
    """The last timestep of a schedule that ends in noise alone, as arXiv 2305.08891 has it."""
    scale = noise_scale(tiny_base.scheduler_config | VELOCITY | {"rescale_betas_zero_snr": True})
    assert scale(999) == 0.0 < scale(998)
    none = Conditioning(torch.zeros(1, 77, 16))
    made = SafetyGuidance(SLDSettings(warm_up=0), none, scale)(
        lambda *_: torch.ones(3, 4, 8, 8), torch.zeros(1, 4, 8, 8), 999, none, none, 3.0
    )
    assert made.isfinite().all()


def test_a_scheduler_that_steps_by_noise_alone_is_refused(tiny_base: Base) -> None:
    make_scheduler("IPNDMScheduler", tiny_base.scheduler_config, 4)
    with pytest.raises(UserError, match="IPNDMScheduler': steps by noise, and the base predicts v_prediction"):
        make_scheduler("IPNDMScheduler", tiny_base.scheduler_config | VELOCITY, 4)


def test_a_base_says_what_it_predicts(tiny_base: Base) -> None:
    assert tiny_base.prediction_type == "epsilon"
    assert replace(tiny_base, scheduler_config=tiny_base.scheduler_config | VELOCITY).prediction_type == "v_prediction"
    assert replace(tiny_base, scheduler_config={}).prediction_type == "epsilon"
