"""From latents to pixels: at once on a CPU, on a GPU beside the next batch's denoising.

There the decoder has a stream of its own, which also copies the pixels to the host; nobody waits for it until the next
batch has been handed to the GPU.
"""

import warnings
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efface.models.base import Base
from efface.models.recipe import Dtype


def overlapping(device: torch.device) -> int:
    """How many batches may be on their way to pixels while the next is denoised."""
    return 1 if device.type == "cuda" else 0


class Decoding:
    """A batch of latents (B, 4, h, w), on its way."""

    def __init__(self, base: Base, latents: Tensor, dtype: Dtype = "float32") -> None:
        self._done: Any = None
        if not overlapping(latents.device):
            self._found = _pixels(base, latents, dtype)
            return
        stream = _stream(latents.device)
        stream.wait_stream(torch.cuda.current_stream(latents.device))
        with torch.cuda.stream(stream):
            levels, finite = _pixels(base, latents, dtype)
            self._found = levels.to("cpu", non_blocking=True), finite.to("cpu", non_blocking=True)
            self._done = stream.record_event()
        latents.record_stream(stream)  # its memory is not given away before the decoder has read it

    def result(self) -> tuple[np.ndarray, list[bool]]:
        """The images, uint8 (B, H, W, 3), and whether all values of each were numbers.

        No number becomes grey, with a warning.
        """
        if self._done is not None:
            self._done.synchronize()
        levels, finite = self._found
        if not bool(finite.all()):
            warnings.warn(
                "the model made images with values that are not numbers; they are shown as grey", stacklevel=3
            )
        return levels.cpu().numpy(), finite.tolist()


def decode(base: Base, latents: Tensor, dtype: Dtype = "float32") -> tuple[np.ndarray, list[bool]]:
    """The result, waited for."""
    return Decoding(base, latents, dtype).result()


def _pixels(base: Base, latents: Tensor, dtype: Dtype) -> tuple[Tensor, Tensor]:
    """uint8 (B, H, W, 3), and (B,) whether all values were numbers; on the latents' device."""
    precise = dtype == "float32" or base.device.type not in ("cuda", "cpu")
    with nullcontext() if precise else torch.autocast(base.device.type, getattr(torch, dtype)):
        pixels = base.vae.decode(latents / base.vae.config.scaling_factor).sample
    finite = pixels.isfinite().flatten(1).all(dim=1)
    pixels = pixels.float().nan_to_num(0.0, 1.0, -1.0)
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()
    return levels.permute(0, 2, 3, 1).to(torch.uint8), finite


@cache
def _stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
