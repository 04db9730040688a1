"""One costly tensor in a file of the job's cache, as a function of its key; what all processes of a group agree on."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from efface.errors import StorageError
from efface.files import content_id, write_atomic
from efface.train.collectives import all_gather


def cached(
    cache: Path | None, purpose: str, key: list[Any], make: Callable[[], Tensor], device: torch.device
) -> Tensor:
    """What `make` gives, or once gave for the same JSON `key`, fp32; from a file where all processes have one."""
    file = cache / f"{purpose}-{content_id(key)}.safetensors" if cache else None
    if all(all_gather(file is not None and file.is_file())) and file:
        return safetensors.torch.load(file.read_bytes())["value"].to(device)
    made = make().detach()
    if file:
        with suppress(StorageError):  # a cache that cannot be written costs time only
            write_atomic(file, safetensors.torch.save({"value": made.float().cpu().contiguous()}))
    return made
