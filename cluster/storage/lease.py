"""The lease of a run folder: of many drivers that start on it one works, and the others say so.

    leases/00000007.json    {"driver": {host, boot, pid, started}, "beat": 42, "released": false}

A lease is a file with a number; the highest holds. It is created only if nobody has created it before, which a local or
shared file system and an object store all decide for one, and renewed every few seconds by counting `heartbeat` up. A
driver
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
from efface.files import create_exclusive, write_json

HEARTBEAT_INTERVAL = 5.0
"""Seconds between two signs of life."""

HEARTBEAT_TIMEOUT = 45.0
"""Seconds without one after which a driver on another machine is taken for dead."""


class Lease:
    """The right to work on the run in `root`, held while in the `with` block. Raises UserError if another has it."""

    def __init__(
        self, root: Path, heartbeat: float = HEARTBEAT_INTERVAL, heartbeat_timeout: float = HEARTBEAT_TIMEOUT
    ) -> None:
        self._folder = root / "leases"
        self._heartbeat_interval, self._heartbeat_timeout = heartbeat, heartbeat_timeout
        self._number = 0
        self._heartbeats = 0
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self.lost: str | None = None
        """Why this driver holds the lease no more, if it does not."""

    def __enter__(self) -> "Lease":
        while True:
            number, holder = _holder(self._folder)
            if holder and not self._holder_is_dead(number, holder):
                raise UserError(
                    f"{self._folder.parent}: {_describe(holder['driver'])} is at work on this run; "
                    "`efface status` shows how far it is, `efface cancel` stops it"
                )
            self._number = number + 1
            if not create_exclusive(self._file(self._number), json.dumps(self._content()).encode()):
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
        self._stop_event.set()
        self._thread.join()
        if not self.lost:
            with suppress(StorageError):  # the next driver finds that this process is no more
                write_json(self._file(self._number), self._content(released=True))

    def _renew(self) -> None:
        silent_since = time.monotonic()
        while not self._stop_event.wait(self._heartbeat_interval):
            self._heartbeats += 1
            try:
                if _holder(self._folder)[0] != self._number:
                    self.lost = "another driver has taken this run over"
                    return
                write_json(self._file(self._number), self._content())
                silent_since = time.monotonic()
            except StorageError as error:
                if time.monotonic() - silent_since > self._heartbeat_timeout / 2:
                    self.lost = str(error)
                    return

    def _holder_is_dead(self, number: int, holder: dict[str, Any]) -> bool:
        """Whether the holder works no more; waits where only waiting can tell."""
        if holder.get("released"):
            return True
        driver, me = holder["driver"], _this_process()
        if (driver["host"], driver["boot"]) == (me["host"], me["boot"]):
            return _process_start_time(driver["pid"]) != driver["started"]
        end = time.monotonic() + self._heartbeat_timeout
        while time.monotonic() < end:
            time.sleep(min(1.0, self._heartbeat_timeout / 10))
            if _holder(self._folder) != (number, holder):
                return False
        return True

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"

    def _content(self, released: bool = False) -> dict[str, Any]:
        return {"driver": _this_process(), "heartbeat": self._heartbeats, "released": released}


def active_driver(root: Path) -> str | None:
    """The driver that holds a run and has not released it, in words; it may have died since."""
    holder = _holder(root / "leases")[1]
    if not holder or holder.get("released"):
        return None
    driver, me = holder["driver"], _this_process()
    here = (driver["host"], driver["boot"]) == (me["host"], me["boot"])
    return None if here and _process_start_time(driver["pid"]) != driver["started"] else _describe(driver)


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
    whole = (
        isinstance(driver, dict)
        and {*_this_process()} <= {*driver}
        and type(driver["pid"]) is int
        and driver["pid"] > 0
    )
    return max(numbers), content if whole else None


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "started": _process_start_time(os.getpid()),
    }


def _boot_id() -> str:
    """What tells one boot of a machine from the next; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _process_start_time(pid: int) -> float | None:
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


def _describe(driver: dict[str, Any]) -> str:
    return f"a driver on {driver['host']} (process {driver['pid']})"
