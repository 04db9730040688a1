"""Files that are whole or absent, and names made of content: what every record and result is built on.

A location is a local path or the URL of an object store (`s3://bucket/folder`), then a `StorePath`, which has the
methods of pathlib over fsspec.
"""

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from efface.errors import LocationError, NoSpaceError, StorageError, UserError
from efface.storage_retry import first_line, is_transient_in_store, is_transient_on_disk, retry

URL = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")

MAX_COMPARE_BYTES = 2**26
"""Bytes up to which a file is compared with what is to be written: checkpoints and deltas of whole models are not."""

TEMPORARY_MARK = ".efface-"
"""In the name of a file that is being written, between the name it will have and a random end."""

UNUSABLE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
    errno.EACCES, errno.EPERM,
}  # fmt: skip
"""What a file system answers where no later attempt succeeds."""

NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
"""What file systems without hard links (exFAT, SMB, gcsfuse, …) answer where one is requested."""

NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EISDIR}
"""What file systems answer that cannot open or sync a folder; they keep its entries in order themselves."""


def as_path(location: str | Path) -> Path:
    """A local path, or a URL such as `s3://bucket/folder` with the same methods. Raises UserError, LocationError."""
    if not isinstance(location, str):
        return local_path(location) if str(location).startswith("~") else location
    if not URL.match(location):
        return local_path(location)
    from efface.object_store import StorePath

    try:
        # A listing that is kept would hide what other processes have written since.
        path = StorePath(location, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise LocationError(f"{location}: cannot be opened ({first_line(error)})") from None
    if path.protocol in ("file", "local"):
        return Path(path.path)
    if path.protocol != "memory" and not urlsplit(location).netloc:
        raise LocationError(f"{location}: names no bucket, should be like {path.protocol}://bucket/folder")
    return cast(Path, path)


def local_path(text: str | Path) -> Path:
    """A path on this machine. `~` and `~user` at its beginning are home folders, also where no shell replaced them.

    Raises UserError where it begins with `~` and no home folder is known.
    """
    written = str(text)
    if not written.startswith("~"):
        return Path(text)
    with suppress(ValueError):  # of a user's name with a null character
        path = os.path.expanduser(written)
        if path != written:
            return Path(path)
    if written.partition("/")[0] == "~":
        raise UserError(f"{written}: no home folder is known here; set HOME, or write the path out")
    return Path(written)  # no such user: a file may be called so


def exists(path: Path) -> bool:
    """Whether a local path is taken, also by a link to nothing."""
    return path.exists() or path.is_symlink()


def unless_taken(path: Path, id: str, is_own: Callable[[Path], bool], force: bool = False) -> Path:
    """`path`, for what has been computed; or a name with `id` beside it, where there is a file that is not one's own.

    So of two who write the same path at once neither loses what the other has computed. `force`: always `path`.
    """
    if force or not exists(path) or is_own(path):
        return path
    return path.with_name(f"{path.stem}-{id}{path.suffix}")


def is_remote(path: Path) -> bool:
    """Whether `path` is on an object store."""
    return not isinstance(path, os.PathLike)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_id(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON: the id of a job, a shard, a recipe."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    if is_remote(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def slug(text: str) -> str:
    """`text` as part of a file name: lower case, letters, digits and single hyphens, at most 40 characters."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:40].strip("-") or "x"


def file_stem(name: str) -> str:
    """A file name for `name` alone: its slug, and a hash of it behind that where the slug leaves something out.

    Names that differ in nothing but case, and in spaces, hyphens and underscores, still share one.
    """
    plain = slug(name)
    return plain if plain == re.sub("[ _-]", "-", name.casefold()) else f"{plain}-{content_id(name)[:8]}"


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    A local file that holds these bytes already is left as it is, if it is not a large one. Raises StorageError where
    the location cannot be written.
    """
    if is_remote(path):
        _put(path, data, "overwrite")
        return
    try:
        retry(path, lambda: _replace(path, data), is_transient_on_disk)
    except OSError as error:
        raise storage_error(path, "written", error) from None


def _replace(path: Path, data: bytes) -> None:
    small = len(data) <= MAX_COMPARE_BYTES
    if small and path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    with _temporary_file(path, data) as name:
        os.replace(name, path)
    _sync_folder(path.parent)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Write `data` to `path` where there is no file yet; False where there is one. Of many at once, one succeeds.

    A store may lose its answer, and say then, asked again, that there is a file: who must know whether it is their own
    compares its content. Raises StorageError where the location cannot be written.
    """
    try:
        if is_remote(path):
            _put(path, data, "create")
        else:
            with _temporary_file(path, data) as name:
                _link(name, path)
            _sync_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise storage_error(path, "written", error) from None
    return True


def _link(name: str, path: Path) -> None:
    """Give the file `name` the name `path` too, which must be free. Raises FileExistsError.

    Without hard links the name is taken by an empty file first, which others may see for a moment.
    """
    try:
        os.link(name, path)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            os.replace(name, path)
        except BaseException:
            path.unlink()
            raise


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, written atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def open_to_readers(folder: Path) -> None:
    """Give the files in `folder`, and in the folders in it, the mode that the umask gives new files.

    Some libraries write files that nobody but their owner can read, whatever the umask.
    """
    with _temporary_file(folder / "mode", b"") as name:
        mode = stat.S_IMODE(os.stat(name).st_mode)
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(mode)


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


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that efface was writing."""
    return name.startswith(".") and re.fullmatch(r"[a-z0-9_]{8}", name.rpartition(TEMPORARY_MARK)[2]) is not None


@contextmanager
def _temporary_file(path: Path, data: bytes) -> Iterator[str]:
    """A file beside `path` with `data` on the disk; gone afterwards if it is still there."""
    _make_folder(path.parent)
    name = path.with_name(f".{path.name[:60]}{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}")
    try:
        # Not one of `tempfile`: those are readable by their owner alone, whatever the umask.
        with name.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield str(name)
    finally:
        name.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, where there is none, so that they outlast a loss of power."""
    if folder.is_dir():
        return
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            _sync_folder(made.parent)
    except FileExistsError:  # a file, or a link to nothing: never to be taken for the file that is to be created
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder") from None


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def storage_error(path: object, verb: str, error: OSError) -> StorageError:
    """The sentence about a `path` that cannot be read or written (`verb`), and whether a later attempt may succeed."""
    kind = LocationError if error.errno in UNUSABLE else StorageError
    kind = NoSpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else kind
    return kind(f"{path}: cannot be {verb} ({error.strerror or error})")


def _put(path: Any, data: bytes, mode: str) -> None:
    """One object, whole or not at all. Raises FileExistsError in the mode "create" where there is one."""
    try:
        retry(path, lambda: path.fs.pipe_file(path.path, data, mode=mode), _may_be_put_later)
    except FileExistsError:
        raise
    except Exception as error:  # each store has errors of its own, which fsspec lets through
        kind = StorageError if _may_be_put_later(error) else LocationError
        raise kind(f"{path}: cannot be written ({first_line(error)})") from None


def _may_be_put_later(error: Exception) -> bool:
    missing_bucket = isinstance(error, FileNotFoundError)
    return not missing_bucket and not isinstance(error, FileExistsError) and is_transient_in_store(error)
