"""Paths in object stores that tell "it is not there" from "the store cannot be asked".

fsspec lets through what each store's own client raises, and its `isfile` answers no to a store that is out of reach.
Here whatever goes wrong is a StorageError, and only what is not there is a FileNotFoundError.
"""

from __future__ import annotations

import stat as modes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from upath.extensions import ProxyUPath

from efface.errors import LocationError, StorageError
from efface.storage_retry import first_line, is_transient_in_store, retry

T = TypeVar("T")

PATH_ERRORS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


@contextmanager
def wrap_store_errors(path: object) -> Iterator[None]:
    """A block in which a store is read, or changed, once. Raises StorageError, and what is in `PATH_ERRORS`."""
    try:
        yield
    except (*PATH_ERRORS, StorageError):
        raise
    except Exception as error:
        kind = StorageError if is_transient_in_store(error) else LocationError
        raise kind(f"{path}: the store cannot be used ({first_line(error)})") from None


def call_store(path: object, call: Callable[[], T]) -> T:
    """What `call` returns, tried again while the store is away. Raises StorageError, and what is in `PATH_ERRORS`."""
    with wrap_store_errors(path):
        return retry(path, call, lambda error: not isinstance(error, PATH_ERRORS) and is_transient_in_store(error))


class StorePath(ProxyUPath):
    """A path that does what `pathlib.Path` does."""

    __slots__ = ()

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        return call_store(self, super().stat)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._mode() is not None

    def is_file(self) -> bool:
        mode = self._mode()
        return mode is not None and modes.S_ISREG(mode)

    def is_dir(self) -> bool:
        mode = self._mode()
        return mode is not None and modes.S_ISDIR(mode)

    def iterdir(self) -> Iterator[Any]:
        found = super().iterdir
        return iter(call_store(self, lambda: list(found())))

    def glob(self, pattern: str, **options: Any) -> Iterator[Any]:
        found = super().glob
        return iter(call_store(self, lambda: list(found(pattern, **options))))

    def rglob(self, pattern: str, **options: Any) -> Iterator[Any]:
        found = super().rglob
        return iter(call_store(self, lambda: list(found(pattern, **options))))

    def open(self, *arguments: Any, **options: Any) -> Any:
        opened = super().open
        return call_store(self, lambda: opened(*arguments, **options))

    def read_bytes(self) -> bytes:
        return call_store(self, super().read_bytes)

    def read_text(self, *arguments: Any, **options: Any) -> str:
        read = super().read_text
        return call_store(self, lambda: read(*arguments, **options))

    def unlink(self, missing_ok: bool = False) -> None:
        unlinked = super().unlink
        call_store(self, lambda: unlinked(missing_ok))

    def _mode(self) -> int | None:
        try:
            return int(self.stat().st_mode)
        except PATH_ERRORS:
            return None
