"""Where commands write, checked before they work."""

import os
from pathlib import Path

from efface.errors import UserError
from efface.files import as_path


def optional_path(location: str | None) -> Path | None:
    """A path or URL of the command line, None where none was given."""
    return None if location is None else as_path(location)


def check_writable(path: Path, option: str = "--out") -> None:
    """Raises UserError, before minutes of work and not after, where no file can be written at `path`."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder, should be a file")
        parent = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror})") from None
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written, {parent} is not a writable folder")
