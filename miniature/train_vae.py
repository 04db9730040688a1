"""The miniature's VAE: Stable Diffusion's structure (8x down, 4 latent channels), 64 px to 8 x 8 latents.

Loss, means over pixels and latents: |x - x'| + 2 (x - x')^2 + (grad x - grad x')^2 + 1e-4 KL. The gradient term keeps
the drawn lines, and squares rather than absolute values: the median of a thin line's neighbourhood has no line.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from efface.miniature.training import step_rng, to_model_range, to_pictures, train

SEED = 11
BATCH = 16
KL_WEIGHT = 1e-4


def new_vae() -> AutoencoderKL:
    torch.manual_seed(SEED)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical differences of neighbouring pixels."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def vae_loss(vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The loss over a batch of shape (n, 3, 64, 64) in [-1, 1]."""
    posterior = vae.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(pictures.device)
    made = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    error = made - pictures
    loss = error.abs().mean() + 2 * error.square().mean()
    for difference in edges(error):
        loss = loss + difference.square().mean()
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return loss + KL_WEIGHT * kl


def train_vae(pictures: np.ndarray, work: Path, steps: int, device: torch.device) -> AutoencoderKL:
    """Train on uint8 pictures; the returned VAE's scaling factor gives its latents unit variance."""
    vae = new_vae().to(device)

    def loss_at(step: int) -> Tensor:
        rng, generator = step_rng(SEED, step)
        batch = to_model_range(pictures[rng.integers(len(pictures), size=BATCH)]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            return vae_loss(vae, batch, generator)

    mean: Any = train("vae", vae, loss_at, steps=steps, peak=2e-3, work=work, average=0.995)
    first, deviation = encode(mean, pictures[:2000])
    variance = first.var() + (deviation**2).mean()
    mean.register_to_config(scaling_factor=round(float(variance.rsqrt()), 5))
    return mean


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 100) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each picture's latents, unscaled: two tensors of shape (n, 4, 8, 8)."""
    means, deviations = [], []
    for start in range(0, len(pictures), batch):
        posterior = vae.encode(to_model_range(pictures[start : start + batch]).to(vae.device)).latent_dist
        means.append(posterior.mean.cpu())
        deviations.append(posterior.std.cpu())
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 100) -> np.ndarray:
    """Unscaled latents of shape (n, 4, 8, 8) as uint8 pictures."""
    parts = [to_pictures(vae.decode(part.to(vae.device)).sample) for part in latents.split(batch)]
    return np.concatenate(parts)
