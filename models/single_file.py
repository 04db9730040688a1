"""One checkpoint file as a dictionary of tensors. Code in a pickle is refused, not run."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from efface.errors import UserError


class IgnoredPickleClass:
    """Stands in, without doing anything, for what the trainer of CompVis' checkpoints left in them."""


LIGHTNING_CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensor by name, from a .safetensors or a .ckpt (read with `weights_only=True`; its `state_dict` if any).

    Raises UserError where the file is broken, or a .ckpt holds anything but tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(IgnoredPickleClass, LIGHTNING_CALLBACK)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise UserError(
                f"{path}: holds more than tensors, which could run code when read; a .safetensors file cannot"
            ) from None
        raise UserError(f"{path}: not a whole checkpoint") from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError):
        raise UserError(f"{path}: not a whole checkpoint") from None
    while isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, should be a dictionary of tensors")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
