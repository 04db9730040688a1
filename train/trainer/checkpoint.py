"""A run between two optimiser steps, as one safetensors file: what an interrupted job resumes from.

It holds the trained values and the optimiser's moments by parameter name, whole and fp32, and so fits any number of
processes and any ZeRO stage; and what the method itself keeps from step to step. The number of losses is the number of
steps done. It has no state of a random generator: all random numbers are a function of the seed and the number of the
batch, and no method uses torch's global generator.

The file carries the hash of its content. One that is damaged, or of another run, counts as none.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from efface.files import content_id, write_atomic
from efface.plain_files import check_plain
from efface.train.method import Method, UnlearningTask

HEADER = "efface"


@dataclass(frozen=True)
class Checkpoint:
    """A run after `len(losses)` optimiser steps."""

    losses: list[float]
    trained: dict[str, Tensor]
    """Values of the trained tensors by full name, fp32."""
    moments: dict[str, Tensor]
    """The optimiser's state, fp32: `<full name>/exp_avg` and `<full name>/exp_avg_sq` of Adam; of SGD nothing."""
    method: dict[str, Tensor] = field(default_factory=dict)
    """`GradientMethod.state`."""


def run_key(method: Method, task: UnlearningTask) -> str:
    """16 hex digits of everything that a run's course follows from; runs with one key may resume each other."""
    return content_id(
        {
            "method": f"{type(method).__module__}.{type(method).__qualname__}",
            "version": method.version,
            "config": method.config.model_dump(mode="json"),
            "base": task.base.state_id,
            "concepts": [concept.model_dump(mode="json") for concept in task.concepts],
            "erased": [concept.model_dump(mode="json") for concept in task.erased],
            "concept_set": task.concept_set.sha256,
            "seed": task.seed,
        }
    )


def write(path: Path, key: str, state: Checkpoint) -> None:
    """Raises StorageError where it cannot be written."""
    tensors = {f"trained/{name}": value for name, value in state.trained.items()}
    tensors |= {f"moments/{name}": value for name, value in state.moments.items()}
    tensors |= {f"method/{name}": value for name, value in state.method.items()}
    tensors = {name: value.detach().cpu().float().contiguous() for name, value in tensors.items()}
    header = {"key": key, "losses": state.losses, "sha256": _sha256(tensors, state.losses)}
    write_atomic(path, safetensors.torch.save(tensors, metadata={HEADER: json.dumps(header)}))


def read(path: Path, key: str) -> Checkpoint | None:
    """The run in a file, on the CPU; None where there is none, or one that is damaged, or not of this `key`."""
    try:
        check_plain(path)
        data = path.read_bytes()
        tensors, header = safetensors.torch.load(data), _header(data)
        losses = [float(loss) for loss in header["losses"]]
        if header["key"] != key or header["sha256"] != _sha256(tensors, losses):
            return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return Checkpoint(losses, *(_under(f"{part}/", tensors) for part in ("trained", "moments", "method")))


def _header(data: bytes) -> dict[str, Any]:
    """Our part of a safetensors file's header: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][HEADER])
    if not isinstance(header, dict):
        raise ValueError("no header of efface")
    return header


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _sha256(tensors: Mapping[str, Tensor], losses: list[float]) -> str:
    digest = hashlib.sha256(json.dumps(losses).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, list(value.shape), str(value.dtype)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
