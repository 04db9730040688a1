"""Two processes that know of each other as torchrun's do, on the CPU and on loopback."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from efface.models.base import Base
from efface.models.delta import Delta


def together(function: Callable[..., None], *arguments: Any) -> None:
    """`function(rank, *arguments)` in two new processes. Raises where one of them fails; then both are gone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_member, (port, function, arguments), nprocs=2)


def _member(rank: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(rank, *arguments)


def difference(one: Delta, other: Delta, base: Base) -> float:
    """|one - other| / |other - base|, in the weights of the base that they edit; L2 over all tensors."""
    originals, first, second = base.originals(), one.edited(base), other.edited(base)
    assert set(first) == set(second)
    apart = sum(float((first[name] - second[name]).double().square().sum()) for name in second)
    change = sum(float((second[name] - originals[name]).double().square().sum()) for name in second)
    return float((apart / change) ** 0.5)


def saved(folder: Path) -> dict[str, Delta]:
    """The deltas in a folder by file name."""
    return {file.stem: Delta.load(file) for file in sorted(folder.glob("*.safetensors"))}
