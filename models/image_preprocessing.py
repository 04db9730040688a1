"""From images to what a vision model reads, as its `preprocessor_config.json` says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from efface.errors import UserError
from efface.plain_files import read_plain

LARGEST = 2**20
"""Bytes of the file."""
LARGEST_EDGE = 4096
"""Pixels of what a model reads: an edge in a stranger's file allocates memory for every image."""
# PIL's numbers for filters, as the files give them; torch has no Lanczos.
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def read_preprocessing(folder: Path) -> Callable[[Tensor], Tensor]:
    """A function from uint8 (B, H, W, 3) to fp32 (B, 3, h, w) on the same device, as the folder's file says.

    Raises UserError where the file is missing or asks for something else than resize, crop, rescale,
    normalise.
    """
    path = folder / "preprocessor_config.json"
    try:
        config = json.loads(read_plain(path, LARGEST))
        if not isinstance(config, dict):
            raise TypeError(f"a {type(config).__name__}, should be a mapping")
        mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
        if not mean.isfinite().all() or not std.isfinite().all() or not (std > 0).all():
            raise ValueError("image_mean and image_std should be finite, and image_std above 0")
        resize, edge, mode = _resize(config)
        crop = _size(config["crop_size"]) if config.get("do_center_crop") else None
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {why}; it says how images are resized and normalised") from None
    except (ValueError, KeyError, TypeError, OverflowError, RuntimeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a preprocessing of resize, crop and normalise ({reason})") from None

    def preprocess(images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float()
        height, width = pixels.shape[-2:]
        size = resize
        if edge:
            size = (edge * height // min(height, width), edge * width // min(height, width))
        if size and size != (height, width):
            pixels = F.interpolate(pixels, size=size, mode=mode, antialias=mode != "nearest").clamp(0, 255).round()
        if crop:
            top, left = (pixels.shape[-2] - crop[0]) // 2, (pixels.shape[-1] - crop[1]) // 2
            pixels = pixels[..., top : top + crop[0], left : left + crop[1]]
        return (pixels / 255 - mean.to(pixels.device)) / std.to(pixels.device)

    return preprocess


def _resize(config: dict[str, Any]) -> tuple[tuple[int, int] | None, int | None, str]:
    """(height and width), or the shortest edge, or neither; and the filter."""
    if not config.get("do_resize", True):
        return None, None, "bilinear"
    mode = FILTERS[config.get("resample", 2)]
    size = config["size"]
    if isinstance(size, int):
        return None, _edge(size), mode
    if "shortest_edge" in size:
        return None, _edge(size["shortest_edge"]), mode
    return _size(size), None, mode


def _size(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else (size["height"], size["width"])
    return _edge(height), _edge(width)


def _edge(pixels: Any) -> int:
    if not 1 <= int(pixels) <= LARGEST_EDGE:
        raise ValueError(f"an edge of {int(pixels)} pixels, should be 1 to {LARGEST_EDGE}")
    return int(pixels)
