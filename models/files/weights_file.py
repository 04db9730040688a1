"""One checkpoint file as a dictionary of tensors. Code in a pickle is refused, not run."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from efface.errors import UserError
from efface.models.files.safetensors_headers import read_header
from efface.plain_files import check_plain


class IgnoredPickleClass:
    """Replaces, without doing anything, what trainers leave beside the tensors."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


LIGHTNING_CALLBACK = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    # A numpy number, such as the last step or the best score, or an array of them.
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{made}" for core in ("core", "_core") for made in ("scalar", "_reconstruct")),
)
DEEPEST = 8
"""How often a `state_dict` may lie in another."""
LONGEST_PICKLE = 2**26
"""Bytes, without the tensors' own; a Stable Diffusion has 0.3 MB."""
UNPACKED = 4
"""Times as much as it has bytes itself is the most that a file may unpack to."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensor by name, from a .safetensors or a .ckpt (read with `weights_only=True`; its `state_dict` if any).

    Raises UserError where the file is broken, or a .ckpt holds anything but tensors and plain values.
    """
    if path.suffix == ".safetensors":
        read_header(path)
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise UserError(
                f"{path}: holds more than tensors, which could run code when read; a .safetensors file cannot"
            ) from None
        raise UserError(f"{path}: not a whole checkpoint") from None
    except Exception:  # a damaged pickle may fail in any way
        raise UserError(f"{path}: not a whole checkpoint") from None
    for _ in range(DEEPEST):
        if not isinstance(content, dict) or "state_dict" not in content:
            break
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, should be a dictionary of tensors")
    return {name: value for name, value in content.items() if isinstance(name, str) and _is_plain(value)}


def _unpickled(path: Path) -> Any:
    stored = _check_size(path)
    with torch.serialization.safe_globals([(IgnoredPickleClass, name) for name in LIGHTNING_CALLBACK]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=stored)


def _check_size(path: Path) -> bool:
    """Whether the file is a zip archive whose tensors lie in it as they are, and so need not be copied to be read.

    Raises UserError where it would unpack to much more than it is.
    """
    check_plain(path)
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    pickled = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if unpacked > UNPACKED * path.stat().st_size or pickled > LONGEST_PICKLE:
        raise UserError(f"{path}: unpacks to {unpacked >> 20} MiB, which is more than a checkpoint of its size holds")
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with all its numbers in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
