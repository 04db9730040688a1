"""What disturbs a process from within: a kill between two of its writes, a loss of power, a clock that jumps.

All wrap calls of the operating system in this process alone. Light to import, as every Ray worker does.
"""

import itertools
import os
import random
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

WRITES = ("replace", "link", "fsync", "unlink", "mkdir")
"""Calls of `os` between which a process may be killed: everything that changes what is in a folder."""

YEARS = 10 * 365 * 24 * 3600.0


def kill_at_write(
    last: int | None, once: str | None = None, before: Callable[[], None] = lambda: None
) -> Callable[[], int]:
    """Kill this process in place of its write number `last` (1, …). The function counts the writes so far.

    once: a file that is made by the first process killed so, and keeps others alive. before: called just before.
    """
    count = itertools.count(1)
    made = [0]

    def counted(really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            made[0] = next(count)
            if made[0] == last and _first(once):
                before()
                os.kill(os.getpid(), signal.SIGKILL)
            return really(*args, **named)

        return call

    for name in WRITES:
        setattr(os, name, counted(getattr(os, name)))
    return lambda: made[0]


def _first(once: str | None) -> bool:
    if once is None:
        return True
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class VolatileDisk:
    """A disk that keeps what was synced, and nothing else, when the power goes.

    POSIX promises no more: `fsync` of a file keeps its content, `fsync` of a folder the names in it. What lay in `root`
    when this process began is taken to be on the disk.
    """

    def __init__(self, root: Path, backups: Path, seed: int) -> None:
        """backups: a new folder on the same file system, for what unsynced changes have replaced."""
        self._root, self._backups, self._generator = root, backups, random.Random(seed)
        backups.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._really = {name: getattr(os, name) for name in WRITES}
        self._synced = {os.stat(path).st_ino: self._content(path) for path in self._files()}
        """Inode -> size and time of its content on the disk."""
        self._unsynced: list[tuple[int, Callable[[], object]]] = []
        """Changes of names: the folder's inode, and what undoes them."""
        for name in WRITES:
            setattr(os, name, getattr(self, name))

    def lose_power(self) -> None:
        """Undo what was not synced. Nothing is written any more: the lock stays taken."""
        self._lock.acquire()
        for _, undo in reversed(self._unsynced):
            with suppress(OSError):
                undo()
        for path in self._files():
            size, _ = found = self._content(path)
            kept = self._synced.get(os.stat(path).st_ino)
            if found != kept:  # as much of it as has been written by chance
                os.truncate(path, self._generator.randint(0, size))

    def fsync(self, handle: int) -> None:
        with self._lock:
            self._really["fsync"](handle)
            found = os.fstat(handle)
            if stat.S_ISDIR(found.st_mode):
                self._unsynced = [change for change in self._unsynced if change[0] != found.st_ino]
            else:
                self._synced[found.st_ino] = (found.st_size, found.st_mtime_ns)

    def replace(self, source: Any, target: Any) -> None:
        with self._lock:
            undo = self._restore(target)
            self._really["replace"](source, target)
            self._changed(target, undo)

    def link(self, source: Any, target: Any) -> None:
        with self._lock:
            self._really["link"](source, target)
            self._changed(target, lambda: self._really["unlink"](target))

    def unlink(self, path: Any) -> None:
        with self._lock:
            undo = self._restore(path)
            self._really["unlink"](path)
            self._changed(path, undo)

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        with self._lock:
            self._really["mkdir"](path, mode)
            self._changed(path, lambda: shutil.rmtree(path))

    def _changed(self, path: Any, undo: Callable[[], object]) -> None:
        self._unsynced.append((os.stat(os.path.dirname(path)).st_ino, undo))

    def _restore(self, path: Any) -> Callable[[], object]:
        """What gives a name back to the file that has it now."""
        backup = self._backups / str(len(os.listdir(self._backups)))
        try:
            self._really["link"](path, backup)
        except FileNotFoundError:
            return lambda: self._really["unlink"](path)
        return lambda: self._really["replace"](backup, path)

    def _files(self) -> list[Path]:
        return [Path(folder, name) for folder, _, names in os.walk(self._root) for name in names]

    @staticmethod
    def _content(path: Path) -> tuple[int, int]:
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns


def jumping_clock(seed: int) -> None:
    """From now on the time of day of this process jumps, and with it the times of the files that it writes."""
    generator, real, replace = random.Random(seed), time.time, os.replace
    offset = [0.0]

    def jumped() -> float:
        if generator.random() < 0.2:
            offset[0] = generator.uniform(-YEARS, YEARS)
        return real() + offset[0]

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(jumped(), tz)

    def replaced(source: Any, target: Any) -> None:
        os.utime(source, (jumped(), jumped()))
        replace(source, target)

    from efface.cluster.storage import journal

    time.time = jumped
    journal.datetime = Jumping  # type: ignore[misc]
    os.replace = replaced  # type: ignore[assignment]
