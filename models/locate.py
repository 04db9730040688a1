"""From a model's source to its files on this machine: shipped, local, in the hub's cache, or fetched."""

from collections.abc import Sequence
from pathlib import Path

from efface.errors import UserError
from efface.strict import CONFIGS

DIFFUSERS_FILES = (
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/*",
    "scheduler/scheduler_config.json",
)
PACKAGE = "package:"


class NotFetched(UserError):
    """A model of the hub of which this machine has no copy yet."""


def locate(source: str, files: Sequence[str], fetch: bool = True) -> Path:
    """The local folder or file meant by `source`: 'package:PATH', a path, or a hub id whose `files` are then
    fetched.

    Raises UserError where there is none, or the hub cannot be reached; NotFetched where it should not `fetch`
    and would have to.
    """
    if source.startswith(PACKAGE):
        path = CONFIGS.parent / source.removeprefix(PACKAGE)
        if not path.exists():
            raise UserError(f"{source}: this installation of efface has no {source.removeprefix(PACKAGE)}")
        return path
    path = Path(source).expanduser()
    return path if path.exists() else _from_hub(source, files, fetch)


def _from_hub(repository: str, files: Sequence[str], fetch: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(files), local_files_only=True))
        if all(any(folder.glob(file)) for file in files):
            return folder
    except HFValidationError:
        raise UserError(f"{repository}: no such file or folder, and not a hub id") from None
    except Exception:
        pass
    if not fetch:
        raise NotFetched(f"{repository}: not in the hub's cache")
    try:
        return Path(snapshot_download(repository, allow_patterns=list(files)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{repository}: no such file or folder, not in the hub's cache, and not to be had ({reason})"
        ) from None
