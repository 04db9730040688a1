"""Files that are whole or absent, and names made of content: the ground every record and result stands on.

A place is a local path or the URL of an object store (`s3://bucket/folder`), then a `StorePath`, which has pathlib's
words over fsspec.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from efface.errors import StorageError

MAX_COMPARE_BYTES = 2**26
"""Bytes up to which a file is compared with what is to be written: checkpoints and deltas of whole models are not."""


def as_path(location: str | Path) -> Path:
    """A local path, or a URL such as `s3://bucket/folder` with the same methods. Raises StorageError."""
    if not isinstance(location, str):
        return location
    if not re.match("[A-Za-z][A-Za-z0-9+.-]*://", location):
        return Path(location)
    from efface.object_store import StorePath

    try:
        # A listing that is kept would hide what other processes have written since.
        path = StorePath(location, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise StorageError(f"{location}: cannot be opened ({str(error).splitlines()[0]})") from None
    return Path(path.path) if path.protocol in ("file", "local") else cast(Path, path)


def is_remote(path: Path) -> bool:
    """Whether `path` lies on an object store."""
    return not isinstance(path, os.PathLike)


def content_id(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON: the id of a job, a shard, a recipe."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    if is_remote(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def slug(text: str) -> str:
    """`text` as part of a file name: lower case, letters, digits and single hyphens, at most 40 characters."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:40].strip("-") or "x"


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    A local file that holds these bytes already is left as it is, if it is not a large one. Raises StorageError where
    the place cannot be written.
    """
    if is_remote(path):
        _put(path, data, "overwrite")
        return
    try:
        small = len(data) <= MAX_COMPARE_BYTES
        if small and path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
        with _temporary_file(path, data) as name:
            os.replace(name, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from None


def create_exclusive(path: Path, data: bytes) -> bool:
    """Write `data` to `path` where there is no file yet; False where there is one. Of many at once, one succeeds.

    Raises StorageError where the place cannot be written.
    """
    try:
        if is_remote(path):
            _put(path, data, "create")
        else:
            with _temporary_file(path, data) as name:
                os.link(name, path)
            _sync_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from None
    return True


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, written atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """A local file with the content of `path`, for readers that know local files alone; itself where it is local."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="efface-") as folder:
        copy = Path(folder) / path.name
        if path.is_file():
            copy.write_bytes(path.read_bytes())
        yield copy


@contextmanager
def _temporary_file(path: Path, data: bytes) -> Iterator[str]:
    """A file beside `path` with `data` on the disk; gone afterwards if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        yield name
    finally:
        Path(name).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put(path: Any, data: bytes, mode: str) -> None:
    """One object, whole or not at all. Raises FileExistsError in the mode "create" where there is one."""
    try:
        path.fs.pipe_file(path.path, data, mode=mode)
    except FileExistsError:
        raise
    except Exception as error:  # each store has errors of its own, which fsspec lets through
        raise StorageError(f"{path}: cannot be written ({_message(error)})") from None


def _message(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
