"""Attention kernels timed against each other: once per GPU, dtype and shape, and kept in the cache folder."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from efface.errors import UserError
from efface.files import content_id, write_json
from efface.models.fingerprint import cache_folder

BATCH_SIZE = 8
"""Images in a timed batch."""
REPEATS = 10

Shape = tuple[int, int, int]
"""Heads, tokens, width of a head."""


def milliseconds(
    kernels: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[Shape],
) -> dict[str, float]:
    """What each of `kernels` takes for self-attention of ROWS images at `shapes`, added up.

    A kernel's time is a forward pass, as in sampling, and a forward with its backward, as in training. A kernel that
    fails at one of the shapes is left out. Known answers come from `$EFFACE_CACHE/attention`.
    """
    key = {
        "device": _name(device),
        "dtype": str(dtype),
        "shapes": [list(shape) for shape in shapes],
        "kernels": sorted(kernels),
        "rows": BATCH_SIZE,
        "versions": {package: _version(package) for package in ("torch", "xformers")},
    }
    known = cache_folder() / "attention" / f"{content_id(key)}.json"
    try:
        found = {name: float(value) for name, value in json.loads(known.read_text())["milliseconds"].items()}
        if found and set(found) <= set(kernels):
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    timed = {}
    for name, attend in kernels.items():
        with suppress(RuntimeError, NotImplementedError, ValueError):
            timed[name] = round(sum(sum(timings(attend, device, dtype, shape)) for shape in shapes), 3)
    with suppress(UserError):  # a cache that cannot be written costs time only
        write_json(known, {**key, "milliseconds": timed})
    return timed


def timings(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    device: torch.device,
    dtype: torch.dtype,
    shape: Shape,
    key_tokens: int | None = None,
) -> tuple[float, float]:
    """Milliseconds of one forward pass, and of one forward with backward, for ROWS images; the best of REPEATS.

    `key_tokens`: of a cross-attention, 77 in SD 1.x. Raises whatever the kernel raises.
    """
    heads, tokens, width = shape
    lengths = (tokens, key_tokens or tokens, key_tokens or tokens)
    # As a layer has them: heads side by side in a token. What a kernel has to copy for another order is its cost.
    qkv = [
        torch.randn(BATCH_SIZE, length, heads, width, device=device, dtype=dtype, requires_grad=True)
        for length in lengths
    ]
    grad_output = torch.randn_like(qkv[0])

    def attended() -> Tensor:
        return attend(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2).contiguous()

    def forward() -> Any:
        with torch.no_grad():
            return attended()

    def both() -> Any:
        with torch.enable_grad():
            return torch.autograd.grad(attended(), qkv, grad_output)

    return _best(forward, device), _best(both, device)


def _best(work: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds, after one round that does not count."""
    times = []
    for _ in range(REPEATS + 1):
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)
        times.append((time.perf_counter() - start) * 1000)
    return min(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
