"""Random numbers as a function of content: every one comes from a generator made of the job's seed and its purpose.

So a number depends neither on the device nor on what was drawn before it, and any step can be repeated by itself.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


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


def shuffled(count: int, turn: int, seed: int, *purpose: str | int) -> int:
    """Which of `count` items is shown in turn 0, 1, …: all of them once, in a new order each time round."""
    rounds, position = divmod(turn, count)
    return int(torch.randperm(count, generator=generator(seed, *purpose, "round", rounds))[position])


def choice(items: Sequence[Item], generator: torch.Generator) -> Item:
    """One of the items, each as likely as another; of a single one that, and nothing is drawn."""
    return items[integer(len(items), generator)] if len(items) > 1 else items[0]


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), fp32, on the CPU."""
    return torch.rand(shape, generator=generator)
