"""Files that may be a stranger's, read with limits.

A pipe never ends, a device gives zeros for ever, a file may be larger than the memory, and a link may lead to a secret.
What is refused raises an OSError like any file that cannot be read, so that a reader needs no case of its own for it.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from efface.files import is_remote

MOST = 2**26
"""Bytes of a file that is read as a whole, unless its reader says another number."""


def read_plain(path: Path | str, most: int = MOST) -> bytes:
    """The bytes of a file. Raises OSError where there is none, or more than `most` bytes, or what is no plain file."""
    if not isinstance(path, str) and is_remote(path):
        data, too_large = path.read_bytes(), False  # an object has an end
    else:
        with open_plain(path) as file:
            too_large = os.fstat(file.fileno()).st_size > most
            data = b"" if too_large else file.read(most + 1)  # which may have grown since
    if too_large or len(data) > most:
        raise OSError(errno.EFBIG, f"has more than {most:,} bytes", str(path))
    return bytes(data)


def open_plain(path: Path | str) -> BinaryIO:
    """A local file, opened to be read. Raises OSError where it is a pipe, a device, a socket or a folder."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # a pipe would wait for a writer
    try:
        _check_mode(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_plain(path: Path | str) -> None:
    """Raises OSError as `open_plain` does; for what another library will open. Nothing is asked of a store."""
    if isinstance(path, str) or not is_remote(path):
        _check_mode(os.stat(path).st_mode, path)


def leaves(path: Path, root: Path) -> bool:
    """Whether links lead from a path in the local folder `root` out of it, or in a circle; a store has none."""
    if is_remote(path):
        return False
    try:
        return not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return True


def _check_mode(mode: int, path: Path | str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a plain file", str(path))
