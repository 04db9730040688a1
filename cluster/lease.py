"""The lease of a run folder: of many drivers that start on it one works, and the others say so.

    leases/00000007.json    {"driver": {host, boot, pid, started}, "beat": 42, "released": false}

A lease is a file with a number; the highest holds. It is created only if nobody has created it before, which a local or
shared file system and an object store all decide for one, and renewed every few seconds by counting `beat` up. A driver
may take the next number when the holder has released its lease, when it ran on this machine and is no more, or when its
beat stood still for a while by this machine's own steady clock: no two clocks are ever compared.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from efface.errors import StorageError, UserError
from efface.files import create, write_json

BEAT = 5.0
"""Seconds between two signs of life."""

PATIENCE = 45.0
"""Seconds without one after which a driver on another machine is taken for dead."""


class Lease:
    """The right to work on the run in `root`, held while in the `with` block. Raises UserError if another has it."""

    def __init__(self, root: Path, beat: float = BEAT, patience: float = PATIENCE) -> None:
        self._folder = root / "leases"
        self._beat, self._patience = beat, patience
        self._number = 0
        self._count = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self.lost: str | None = None
        """Why this driver holds the lease no more, if it does not."""

    def __enter__(self) -> "Lease":
        while True:
            number, holder = _holder(self._folder)
            if holder and not self._gone(number, holder):
                raise UserError(
                    f"{self._folder.parent}: {_told(holder['driver'])} is at work on this run; "
                    "`efface status` shows how far it is, `efface cancel` stops it"
                )
            self._number = number + 1
            if not create(self._file(self._number), json.dumps(self._content()).encode()):
                continue  # another driver was faster: see whether it lives
            if _holder(self._folder)[0] == self._number:
                break
            self._file(self._number).unlink()
        for old in range(max(1, self._number - 3), self._number):
            self._file(old).unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if not self.lost:
            with suppress(StorageError):  # the next driver finds that this process is no more
                write_json(self._file(self._number), self._content(released=True))

    def _keep(self) -> None:
        silent_since = time.monotonic()
        while not self._over.wait(self._beat):
            self._count += 1
            try:
                if _holder(self._folder)[0] != self._number:
                    self.lost = "another driver has taken this run over"
                    return
                write_json(self._file(self._number), self._content())
                silent_since = time.monotonic()
            except StorageError as error:
                if time.monotonic() - silent_since > self._patience / 2:
                    self.lost = str(error)
                    return

    def _gone(self, number: int, holder: dict[str, Any]) -> bool:
        """Whether the holder works no more; waits where only waiting can tell."""
        if holder.get("released"):
            return True
        driver, me = holder["driver"], _me()
        if (driver["host"], driver["boot"]) == (me["host"], me["boot"]):
            return _started(driver["pid"]) != driver["started"]
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            time.sleep(min(1.0, self._patience / 10))
            if _holder(self._folder) != (number, holder):
                return False
        return True

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"

    def _content(self, released: bool = False) -> dict[str, Any]:
        return {"driver": _me(), "beat": self._count, "released": released}


def driver_at_work(root: Path) -> str | None:
    """The driver that holds a run and has not released it, in words; it may have died since."""
    holder = _holder(root / "leases")[1]
    if not holder or holder.get("released"):
        return None
    driver, me = holder["driver"], _me()
    here = (driver["host"], driver["boot"]) == (me["host"], me["boot"])
    return None if here and _started(driver["pid"]) != driver["started"] else _told(driver)


def _holder(folder: Path) -> tuple[int, dict[str, Any] | None]:
    """The highest number and what its file says; (0, None) where nobody ever came, and None for a damaged file."""
    try:
        numbers = [int(path.stem) for path in folder.iterdir() if path.stem.isdecimal() and path.suffix == ".json"]
        if not numbers:
            return 0, None
        content = json.loads((folder / f"{max(numbers):08d}.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):  # of a folder that is not there, stores say either
        return 0, None
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        return max(numbers), None
    driver = content.get("driver") if isinstance(content, dict) else None
    whole = isinstance(driver, dict) and {*_me()} <= {*driver} and type(driver["pid"]) is int and driver["pid"] > 0
    return max(numbers), content if whole else None


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "started": _started(os.getpid())}


def _boot() -> str:
    """What tells one boot of a machine from the next; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> float | None:
    """When a process of this machine started, which tells it from a later one with its number; None: there is none."""
    try:
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else float(facts[18])  # ticks since boot, which no change of the clock moves
    except OSError:
        pass
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _told(driver: dict[str, Any]) -> str:
    return f"a driver on {driver['host']} (process {driver['pid']})"
