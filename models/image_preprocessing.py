"""From images to what a vision model reads, as its `preprocessor_config.json` says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from efface.errors import UserError

# PIL's numbers for filters, as the files give them; torch has no Lanczos.
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def read_preprocessing(folder: Path) -> Callable[[Tensor], Tensor]:
    """A function from uint8 (B, H, W, 3) to fp32 (B, 3, h, w) on the same device, as the folder's file says.

    Raises UserError where the file is missing or asks for something else than resize, crop, rescale,
    normalise.
    """
    path = folder / "preprocessor_config.json"
    try:
        config = json.loads(path.read_text())
        mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
        resize, edge, mode = _resize(config)
        crop = _size(config["crop_size"]) if config.get("do_center_crop") else None
    except OSError:
        raise UserError(f"{path}: cannot be read; it says how images are resized and normalised") from None
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: not a preprocessing of resize, crop and normalise ({error})") from None

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
        return None, size, mode
    if "shortest_edge" in size:
        return None, int(size["shortest_edge"]), mode
    return _size(size), None, mode


def _size(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))
