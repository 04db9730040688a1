"""Paths in object stores that tell "it is not there" from "the store cannot be asked".

fsspec lets through what each store's own client raises, and its `isfile` answers no to a store that is out of reach.
Here whatever goes wrong is a StorageError, and only what is not there is a FileNotFoundError.
"""

from __future__ import annotations

import stat as modes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from upath.extensions import ProxyUPath

from efface.errors import StorageError

PATH_ERRORS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


@contextmanager
def wrap_store_errors(path: object) -> Iterator[None]:
    """A block in which a store is read, or changed. Raises StorageError, and what is in `PATH_ERRORS`."""
    try:
        yield
    except (*PATH_ERRORS, StorageError):
        raise
    except Exception as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageError(f"{path}: the store cannot be used ({message})") from None


class StorePath(ProxyUPath):
    """A path that does what `pathlib.Path` does."""

    __slots__ = ()

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        with wrap_store_errors(self):
            return super().stat()

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._mode() is not None

    def is_file(self) -> bool:
        mode = self._mode()
        return mode is not None and modes.S_ISREG(mode)

    def is_dir(self) -> bool:
        mode = self._mode()
        return mode is not None and modes.S_ISDIR(mode)

    def iterdir(self) -> Iterator[Any]:
        with wrap_store_errors(self):
            return iter(list(super().iterdir()))

    def glob(self, pattern: str, **options: Any) -> Iterator[Any]:
        with wrap_store_errors(self):
            return iter(list(super().glob(pattern, **options)))

    def rglob(self, pattern: str, **options: Any) -> Iterator[Any]:
        with wrap_store_errors(self):
            return iter(list(super().rglob(pattern, **options)))

    def open(self, *arguments: Any, **options: Any) -> Any:
        with wrap_store_errors(self):
            return super().open(*arguments, **options)

    def read_bytes(self) -> bytes:
        with wrap_store_errors(self):
            return super().read_bytes()

    def read_text(self, *arguments: Any, **options: Any) -> str:
        with wrap_store_errors(self):
            return super().read_text(*arguments, **options)

    def unlink(self, missing_ok: bool = False) -> None:
        with wrap_store_errors(self):
            super().unlink(missing_ok)

    def _mode(self) -> int | None:
        try:
            return int(self.stat().st_mode)
        except PATH_ERRORS:
            return None
