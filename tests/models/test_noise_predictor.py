"""Partial denoising: the state before step i is exactly as noisy as timesteps[i] says."""

import pytest
import torch
from torch import Tensor

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import classifier_free_guidance, partial_denoise
from efface.models.noise_scheduler import make_scheduler

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = torch.cumprod(1 - BETAS, 0)
CLEAN = torch.full((2, 4, 8, 8), 0.5, dtype=torch.float64)
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOTHING = Conditioning(torch.zeros(1, 77, 16))


def oracle(latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
    """The noise in latents whose clean image is CLEAN, if they are as noisy as `timestep` says."""
    alpha = ALPHAS[int(timestep)]
    return (latents - alpha.sqrt() * CLEAN) / (1 - alpha).sqrt()


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpm++", "euler"])
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 7, 19])
def test_the_state_is_as_noisy_as_its_timestep(name: str, stop: int) -> None:
    """A trajectory of the oracle keeps the noise it starts with, at every t: x_t = sqrt(a) x_0 + sqrt(1 - a) eps."""
    scheduler = make_scheduler(name, CONFIG, 20)
    first = ALPHAS[int(scheduler.timesteps[0])]
    eps = (NOISE - first.sqrt() * CLEAN) / (1 - first).sqrt()
    latents, timestep = partial_denoise(oracle, scheduler, NOTHING, NOTHING, NOISE, 1.0, stop)
    assert timestep == scheduler.timesteps[stop]
    alpha = ALPHAS[int(timestep)]
    expected = alpha.sqrt() * CLEAN + (1 - alpha).sqrt() * eps
    # Two neighbouring timesteps differ a hundred times more than this.
    torch.testing.assert_close(latents, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpm++"])
def test_stopping_at_once_gives_the_noise_and_the_first_timestep(name: str) -> None:
    scheduler = make_scheduler(name, CONFIG, 50)
    latents, timestep = partial_denoise(oracle, scheduler, NOTHING, NOTHING, NOISE, 3.0, 0)
    assert torch.equal(latents, NOISE)
    assert timestep == scheduler.timesteps[0]


def test_fifty_steps_of_ddim_start_at_981_and_end_at_1() -> None:
    """Stable Diffusion's leading spacing with offset one: 981, 961, … 1."""
    scheduler = make_scheduler("ddim", CONFIG, 50)
    times = [int(partial_denoise(oracle, scheduler, NOTHING, NOTHING, NOISE, 1.0, i)[1]) for i in (0, 1, 49)]
    assert times == [981, 961, 1]


def test_a_used_scheduler_starts_afresh_and_is_left_alone() -> None:
    scheduler = make_scheduler("pndm", CONFIG, 20)
    first = partial_denoise(oracle, scheduler, NOTHING, NOTHING, NOISE, 1.0, 9)[0]
    for timestep in scheduler.timesteps[:5]:
        scheduler.step(NOISE, timestep, NOISE)
    again = partial_denoise(oracle, scheduler, NOTHING, NOTHING, NOISE, 1.0, 9)[0]
    assert torch.equal(first, again)
    assert scheduler.counter == 5


def test_guidance_is_the_unconditional_plus_s_times_the_difference(tiny_base: Base) -> None:
    predict = tiny_base.denoiser
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    cond, uncond = map(Conditioning, torch.randn(2, 1, 77, 16, generator=generator))
    both = cond.expand(2), uncond.expand(2)
    on, off = (predict(x, 500, one) for one in both)
    torch.testing.assert_close(
        classifier_free_guidance(predict, x, 500, cond, uncond, 3.0), off + 3 * (on - off), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(classifier_free_guidance(predict, x, 500, cond, uncond, 1.0), on)


def test_a_partial_denoising_carries_no_gradient(tiny_base: Base) -> None:
    tiny_base.unet.requires_grad_(True)
    scheduler = make_scheduler("ddim", CONFIG, 10)
    latents, _ = partial_denoise(tiny_base.denoiser, scheduler, NOTHING, NOTHING, NOISE.float(), 3.0, 2)
    assert not latents.requires_grad


def test_a_prediction_is_fp32_whatever_the_unet_computes_in(tiny_base: Base) -> None:
    half = torch.nn.Module.to(tiny_base.unet, torch.bfloat16)
    assert Denoiser(half)(NOISE.float(), torch.tensor([3, 4]), NOTHING.expand(2)).dtype == torch.float32
