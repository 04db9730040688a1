"""Two processes that know of each other as torchrun's do, on the CPU and on loopback."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from efface.models.base import Base
from efface.models.delta import Delta

HEAVY = ["diffusers.models.unets.unet_2d_condition", "efface.models.loading", "efface.train.trainer.loop"]
"""What each process would import for itself; a server imports it once, and they are forked from that."""


def together(function: Callable[..., None], *arguments: Any) -> None:
    """`function(rank, *arguments)` in two new processes. Raises where one of them fails; then both are gone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(HEAVY)
    given = (port, dict(os.environ), function, arguments)
    mp.start_processes(_member, given, nprocs=2, start_method="forkserver")


def _member(
    rank: int, port: int, environment: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(rank, *arguments)


def difference(one: Delta, other: Delta, base: Base) -> float:
    """|one - other| / |other - base|, in the weights of the base that they edit, or a hook's own tensors; L2."""
    originals, first, second = base.originals(), one.edited(base), other.edited(base)
    if other.kind == "hook":  # it edits none; its own tensors began at zero, or nearly
        originals, first, second = {}, one.tensors, other.tensors
    assert set(first) == set(second)
    apart = sum(float((first[name] - second[name]).double().square().sum()) for name in second)
    change = sum(float((second[name] - originals.get(name, 0)).double().square().sum()) for name in second)
    return float((apart / change) ** 0.5)


def rounding(delta: Delta, base: Base) -> float:
    """How far two weights differ that are the same but for one rounding to fp32, as a share of the delta's change.

    A rounding is off by anything up to half the spacing of fp32's numbers, so by its square over 12 in the mean.
    """
    originals, edited = base.originals(), delta.edited(base)
    spacing = {name: value.abs().nextafter(torch.tensor(torch.inf)) - value.abs() for name, value in edited.items()}
    apart = sum(float(value.double().square().sum()) / 12 for value in spacing.values())
    change = sum(float((edited[name] - originals[name]).double().square().sum()) for name in edited)
    return float((apart / change) ** 0.5)


def saved(folder: Path) -> dict[str, Delta]:
    """The deltas in a folder by file name."""
    return {file.stem: Delta.load(file) for file in sorted(folder.glob("*.safetensors"))}
