"""Random numbers as a function of content: every one comes from a generator made of the job's seed and its purpose.

So a number depends neither on the device nor on what was drawn before it, and any step can be repeated by itself.
"""

import hashlib
import json

import torch
from torch import Tensor


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, for instance `generator(seed, "noise", index)`."""
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal numbers, fp32, drawn on the CPU and moved."""
    return torch.randn(shape, generator=generator).to(device)


def integer(high: int, generator: torch.Generator) -> int:
    """One uniform integer in [0, high)."""
    return int(torch.randint(high, (1,), generator=generator))


def integers(high: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` uniform integers in [0, high), int64, on the CPU."""
    return torch.randint(high, (count,), generator=generator)
