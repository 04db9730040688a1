"""The one training loop of the build: AdamW on a one-cycle schedule, a moving average, checkpoints to resume from.

A stage gives its modules and a function from the step's number to a loss. As that function draws all its
randomness from the number, a resumed stage goes on as if it had never stopped.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from efface.miniature.progress import Meter

CHECKPOINT_EVERY = 250


def one_cycle(step: int, total: int, peak: float) -> float:
    """Learning rate: a linear rise over the first 10 %, then half a cosine down to 1 % of the peak."""
    rise = max(1, total // 10)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))))


def step_rng(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The randomness of one step: for indices and captions, and for noise (on the CPU)."""
    return np.random.default_rng((seed, step)), torch.Generator().manual_seed(seed * 1_000_003 + step)


def train(
    title: str,
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    peak: float,
    work: Path,
    average: float = 0.0,
    weight_decay: float = 1e-4,
) -> nn.Module:
    """Train `module` in place for `steps`; returns it, or its moving average of decay `average` where that is > 0."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=peak, weight_decay=weight_decay, betas=(0.9, 0.99))
    mean = deepcopy(module).requires_grad_(False)
    path = work / f"{title}.checkpoint.pt"
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        module.load_state_dict(saved["module"])
        mean.load_state_dict(saved["mean"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    module.train()
    smooth = None
    with Meter(title, steps) as meter:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(step, steps, peak)
            loss = loss_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            if average:
                _follow(mean, module, min(average, (step + 1) / (step + 10)))
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            meter.update(step + 1, f"loss {smooth:.4f}")
            if (step + 1) % CHECKPOINT_EVERY == 0:
                state = {"module": module.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state | {"step": step + 1}, path.with_suffix(".part"))
                path.with_suffix(".part").replace(path)
    return (mean if average else module).eval()


@torch.no_grad()
def _follow(mean: nn.Module, module: nn.Module, decay: float) -> None:
    for slow, fast in zip(mean.parameters(), module.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
    for kept, now in zip(mean.buffers(), module.buffers(), strict=True):
        kept.copy_(now)


def to_model_range(pictures: np.ndarray) -> Tensor:
    """uint8 pictures (n, 64, 64, 3) as float32 in [-1, 1] of shape (n, 3, 64, 64)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensor: Tensor) -> np.ndarray:
    """The inverse of `to_model_range`, clipped and rounded."""
    return ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
