"""Where commands write, checked before they work, so that nothing that exists is lost and no work is in vain."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from efface.errors import UserError
from efface.files import URL, as_path, exists, local_path


def optional_path(location: str | None) -> Path | None:
    """A path or URL of the command line, None where none was given."""
    return None if location is None else as_path(location)


def output(text: str) -> Path:
    """The local path that an option names. Raises UserError for a URL, which would become an odd folder."""
    if URL.match(text):
        raise UserError(f"{text}: is a URL, should be a path on this machine")
    return local_path(text)


def check_output(
    path: Path,
    option: str = "--out",
    *,
    inputs: Mapping[str, str | Path | None] | None = None,
    is_result: Callable[[Path], bool] | None = None,
    force: bool = False,
) -> None:
    """Raises UserError where a command should not write to `path`, or cannot.

    A file that exists is replaced if `is_result` says that it is what the command itself is about to write, or by
    `force`; but never if it is one of `inputs`, the files and folders that the command reads, by what they are called.
    """
    check_writable(path, option)
    if not exists(path) or (is_result and is_result(path)):
        return
    for what, source in (inputs or {}).items():
        if source and _real(path).is_relative_to(_real(local_path(source))):
            raise UserError(f"{option} {path}: is, or belongs to, {what}; should be another file")
    if not force:
        raise UserError(
            f"{option} {path}: exists already{' and is not the result of this very command' if is_result else ''}; "
            "name another file, or give --force to replace it"
        )


def check_writable(path: Path, option: str = "--out") -> None:
    """Raises UserError, before minutes of work and not after, where no file can be written at `path`."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder, should be a file")
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path}: is a device or a pipe, should be a file")
        parent = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror})") from None
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written, {parent} is not a writable folder")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike `Path.resolve`, content with links in a circle
