"""From a model's source to its files on this machine: shipped, local, in the hub's cache, or fetched."""

import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from efface.config_files import CONFIGS
from efface.errors import UserError
from efface.files import local_path
from efface.plain_files import read_plain

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
CONFIG_FILES = tuple(file for file in DIFFUSERS_FILES if file.endswith(".json"))
"""A few kilobytes, which say whether the rest is worth fetching."""
PACKAGE = "package:"
INDEX = ".safetensors.index.json"
"""Ends the name of the file that says which part of sharded weights holds which tensor."""
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")


class NotCached(UserError):
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
    path = local_path(source)
    return path if path.exists() else _from_hub(source, files, fetch)


def _from_hub(repository: str, files: Sequence[str], fetch: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    missing: list[str] = []
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(files), local_files_only=True))
        missing = missing_files(folder, files)
        if not missing:
            return folder
    except HFValidationError:
        raise UserError(f"{repository}: no such file or folder, and not a hub id") from None
    except Exception:
        pass
    if not fetch:
        state = (
            f"only in part in the hub's cache, without {abbreviated(missing)}" if missing else "not in the hub's cache"
        )
        raise NotCached(f"{repository}: {state}")
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(files)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{repository}: no such file or folder, not in the hub's cache, and not to be had ({reason})"
        ) from None
    parts = _missing_shards(folder, files)  # offline, the hub's library is content with what there is
    if parts:
        raise UserError(
            f"{repository}: only in part in the hub's cache, without {abbreviated(parts)}; "
            "run `efface prefetch` where the hub can be reached"
        )
    return folder


def missing_files(folder: Path, files: Sequence[str]) -> list[str]:
    """What a snapshot in the hub's cache lacks of the patterns `files`, as after a download that was broken off.

    Patterns that no file matches; of weights in several files those that the index names, or the numbers in the
    others' names; links to nothing; and unfinished downloads, of which nobody knows what they were to be.
    """
    unmatched = [file for file in files if not any(path.is_file() for path in folder.glob(file))]
    return [*unmatched, *_missing_shards(folder, files), *_incomplete_downloads(folder)]


def _missing_shards(folder: Path, files: Sequence[str]) -> list[str]:
    named = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    known = named | {part for name in named for part in _shard_names(folder, name)}
    wanted = (name for name in known if any(fnmatch(name, file) for file in files))
    return sorted(name for name in wanted if not (folder / name).is_file())


def _shard_names(folder: Path, name: str) -> Iterator[str]:
    """The names of the parts that go with the file `name`, an index or itself a part."""
    numbered = SHARD.fullmatch(name)
    if numbered:
        stem, count = numbered.groups()
        yield from (f"{stem}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1))
    if name.endswith(INDEX) and not (folder / name.removesuffix(".index.json")).is_file():
        place = Path(name).parent
        yield from ((place / part).as_posix() for part in _indexed(folder / name))


def _indexed(index: Path) -> set[str]:
    try:
        return set(json.loads(read_plain(index)).get("weight_map", {}).values())
    except (OSError, ValueError, AttributeError, TypeError):
        return set()


def _incomplete_downloads(folder: Path) -> list[str]:
    """Unfinished downloads of a snapshot's repository, unless the hub's library has a list to see by what is there."""
    repository = folder.parent.parent
    if (repository / "trees" / f"{folder.name}.json").is_file():
        return []
    unfinished = sorted((repository / "blobs").glob("*.incomplete"))
    return [f"blobs/{blob.name}" for blob in unfinished if not blob.with_name(blob.name.partition(".")[0]).exists()]


def abbreviated(names: Sequence[str]) -> str:
    """Three of the names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
