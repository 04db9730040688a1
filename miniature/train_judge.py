"""The judge of the miniature world: a small ResNet with one sigmoid per concept (objects and styles).

It learns from renders, from their VAE reconstructions, and from pictures in which nothing is to be seen: empty
grounds, heavy blurs, shuffled tiles, noise and decoded noise. A label of -1 is left out of the loss.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageFilter
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from efface.miniature.train_vae import decode, encode
from efface.miniature.training import step_rng, to_model_range, train
from efface.miniature.vocabulary import NAMES, OBJECTS, STYLES
from efface.miniature.world import SIZE

SEED = 12
BATCH = 64
UNKNOWN = -1.0
OBJECT_LABELS, STYLE_LABELS = slice(0, len(OBJECTS)), slice(len(OBJECTS), len(OBJECTS) + len(STYLES))


def new_judge() -> ResNetForImageClassification:
    torch.manual_seed(SEED)
    config = ResNetConfig(
        num_channels=3,
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 160],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        problem_type="multi_label_classification",
        id2label=dict(enumerate(NAMES)),
        label2id={name: number for number, name in enumerate(NAMES)},
    )
    return ResNetForImageClassification(config)


def new_processor() -> ViTImageProcessor:
    """Resizes to 64 x 64 and scales to [-1, 1]: exactly `to_model_range` on pictures of that size."""
    size = {"height": SIZE, "width": SIZE}
    return ViTImageProcessor(do_resize=True, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def blurred(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """So soft that no shape is left."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(float(rng.uniform(10, 16)))))


def shuffled(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture's 64 tiles of 8 x 8 pixels in another order."""
    tiles = picture.reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(64, 8, 8, 3)
    return tiles[rng.permutation(64)].reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(SIZE, SIZE, 3)


def static(rng: np.random.Generator) -> np.ndarray:
    """Coloured noise of a random grain."""
    grain = int(rng.choice([4, 8, 16, 64]))
    small = np.clip(rng.normal(rng.uniform(60, 200, 3), rng.uniform(20, 80), (grain, grain, 3)), 0, 255)
    return np.asarray(Image.fromarray(small.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def nothing_to_see(
    pictures: np.ndarray, labels: np.ndarray, vae: AutoencoderKL, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures of each bad kind with their labels: no object in any; no style in noise, else unknown."""
    rng = np.random.default_rng(SEED)
    chosen = rng.integers(len(pictures), size=(2, count))
    made = [
        np.stack([blurred(pictures[i], rng) for i in chosen[0]]),
        np.stack([shuffled(pictures[i], rng) for i in chosen[1]]),
        np.stack([static(rng) for _ in range(count)]),
        decode(vae, random_latents(count, vae.config.scaling_factor)),
    ]
    table = np.zeros((4, count, len(NAMES)), dtype=np.float32)
    table[[0, 1, 3], :, STYLE_LABELS] = UNKNOWN
    return np.concatenate(made), table.reshape(-1, len(NAMES))


def random_latents(count: int, scaling_factor: float) -> Tensor:
    """Noise of several grains with unit variance, as unscaled latents of shape (count, 4, 8, 8)."""
    generator = torch.Generator().manual_seed(SEED)
    parts = []
    for grain in (1, 2, 4, 8):
        noise = torch.randn(-(-count // 4), 4, grain, grain, generator=generator)
        parts.append(nn.functional.interpolate(noise, size=8, mode="bilinear"))
    return torch.cat(parts)[:count] / scaling_factor


def masked_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels that are not `UNKNOWN`."""
    known = labels >= 0
    return nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])


def augmented(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Small changes that change no verdict: mirror image, shift by up to 4 pixels, contrast, noise."""
    n = len(batch)
    if torch.rand((), generator=generator) < 0.5:
        batch = batch.flip(-1)
    dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
    padded = nn.functional.pad(batch, (4, 4, 4, 4), mode="replicate")
    batch = padded[..., 4 + dy : 4 + dy + SIZE, 4 + dx : 4 + dx + SIZE]
    gain = 1 + 0.2 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5)
    grain = 0.08 * torch.rand(n, 1, 1, 1, generator=generator)
    return (batch * gain + grain * torch.randn(batch.shape, generator=generator)).clamp(-1, 1)


def training_set(
    pictures: np.ndarray, labels: np.ndarray, empty: np.ndarray, empty_labels: np.ndarray, vae: AutoencoderKL
) -> tuple[np.ndarray, np.ndarray]:
    """All pictures and labels the judge learns from; about an eighth of them show no object."""
    bad, bad_labels = nothing_to_see(pictures, labels, vae, max(4, len(pictures) // 32))
    half = len(pictures) // 2
    means, _ = encode(vae, pictures[:half])
    empty_means, _ = encode(vae, empty)
    sets = [
        (pictures, labels),
        (decode(vae, means), labels[:half]),
        (empty, empty_labels),
        (decode(vae, empty_means), empty_labels),
        (bad, bad_labels),
    ]
    return np.concatenate([p for p, _ in sets]), np.concatenate([t for _, t in sets])


def train_judge(
    pictures: np.ndarray, labels: np.ndarray, work: Path, steps: int, device: torch.device
) -> ResNetForImageClassification:
    """Train on uint8 pictures (n, 64, 64, 3) and labels (n, concepts)."""
    judge = new_judge().to(device)

    def loss_at(step: int) -> Tensor:
        rng, generator = step_rng(SEED, step)
        chosen = rng.integers(len(pictures), size=BATCH)
        batch = augmented(to_model_range(pictures[chosen]), generator).to(device)
        return masked_loss(judge(batch).logits, torch.from_numpy(labels[chosen]).to(device))

    trained = train("judge", judge, loss_at, steps=steps, peak=3e-3, work=work, average=0.99)
    return trained


@torch.no_grad()
def probabilities(judge: ResNetForImageClassification, pictures: np.ndarray, batch: int = 200) -> np.ndarray:
    """P(concept is seen), float32 of shape (pictures, concepts)."""
    parts = [
        judge(to_model_range(pictures[start : start + batch]).to(judge.device)).logits.sigmoid().cpu().numpy()
        for start in range(0, len(pictures), batch)
    ]
    return np.concatenate(parts)
