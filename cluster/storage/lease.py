"""The lease of a run folder: of several drivers that start on it one works, and the others say so.

    leases/00000007.json    {"id": …, "driver": {"host": …, "pid": …, …}, "heartbeat": 42, "released": false}

A lease is a file with a number; the highest holds. It is created only if nobody has created it before, which a local or
shared file system and an object store all decide for one driver, and renewed every few seconds by counting `heartbeat`
up. A driver may take the next number when the holder has released its lease, when its heartbeat stood still for a while
by this machine's own steady clock (no two clocks are ever compared), or, sooner, when its process is known to be gone:
which only a process of the same namespace can know. Containers may share a host's name and boot, not its processes.
"""

import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import NamedTuple, TypedDict, cast

from efface.cluster.storage.process import Process, describe, is_alive, this_process
from efface.errors import LocationError, StorageError, UserError
from efface.files import create_exclusive, storage_error, write_json
from efface.plain_files import read_plain
from efface.storage_retry import retry_seconds

HEARTBEAT_INTERVAL = 5.0
"""Seconds between two heartbeats."""

HEARTBEAT_TIMEOUT = 45.0
"""Seconds without one after which a driver that cannot be looked up is taken for dead."""

SHARING_TIMEOUT = 60.0
"""Seconds after which other nodes see a new file of a shared file system, whatever they cache."""


class LeaseContent(TypedDict):
    """The JSON of a lease."""

    id: str
    driver: Process
    heartbeat: int
    released: bool


class _Holder(NamedTuple):
    """The lease with the highest number; 0 where there is none."""

    number: int
    content: LeaseContent | None
    """None: the file is damaged, or only being written."""


class Lease:
    """The right to work on the run in `root`, held while in the `with` block. Raises UserError if another has it."""

    def __init__(
        self, root: Path, heartbeat: float = HEARTBEAT_INTERVAL, heartbeat_timeout: float = HEARTBEAT_TIMEOUT
    ) -> None:
        self.id = uuid.uuid4().hex
        """What tells this lease from all others: who reads it in the run folder sees the same folder as this driver."""
        self._folder = root / "leases"
        self._heartbeat_interval, self._heartbeat_timeout = heartbeat, heartbeat_timeout
        self._number = 0
        self._heartbeats = 0
        self._stop_event = Event()
        self._thread = Thread(target=self._renew, daemon=True, name="lease")
        self.lost: str | None = None
        """Why this driver holds the lease no more, if it does not."""

    def __enter__(self) -> "Lease":
        while True:
            number = wait_until_free(self._folder.parent, self._heartbeat_timeout)
            self._number = number + 1
            if self._create():
                if _holder(self._folder).number == self._number:
                    break
                self._file(self._number).unlink(missing_ok=True)
            # Another driver was faster: see whether it lives.
        for old in range(max(1, self._number - 3), self._number):
            with suppress(StorageError, OSError):
                self._file(old).unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_event.set()
        self._thread.join()
        if not self.lost:
            with suppress(StorageError), retry_seconds(self._heartbeat_interval):
                # If not, the next driver finds that this process is gone.
                write_json(self._file(self._number), self._content(released=True))

    def _create(self) -> bool:
        """Whether this lease now has its number. What counts is whose the file is: a store that lost its answer to the
        creation says that there is one already, and one that is not strict says so to two drivers."""
        try:
            create_exclusive(self._file(self._number), json.dumps(self._content()).encode())
        except StorageError as error:
            with suppress(StorageError):
                if self._is_own():
                    return True
            raise error
        return self._is_own()

    def _is_own(self) -> bool:
        content = _read(self._file(self._number))
        return content is not None and content["id"] == self.id

    def _renew(self) -> None:
        last_renewed = time.monotonic()
        while not self._stop_event.wait(self._heartbeat_interval):
            self._heartbeats += 1
            try:
                with retry_seconds(0):  # the next heartbeat is the next attempt
                    if _holder(self._folder).number != self._number:
                        self.lost = "another driver has taken this run over"
                        return
                    write_json(self._file(self._number), self._content())
                last_renewed = time.monotonic()
            except StorageError as error:
                # Early enough to be gone when others may take over.
                if time.monotonic() - last_renewed > self._heartbeat_timeout * 2 / 3:
                    self.lost = str(error)
                    return

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"

    def _content(self, released: bool = False) -> LeaseContent:
        return {"id": self.id, "driver": this_process(), "heartbeat": self._heartbeats, "released": released}


def wait_until_free(root: Path, heartbeat_timeout: float = HEARTBEAT_TIMEOUT) -> int:
    """The number of the last lease of a run (0: none), once it is known that its driver works no more.

    Raises UserError where one works. Waits for a heartbeat where only that can tell.
    """
    holder = _holder(root / "leases")
    if holder.number and not _is_over(root / "leases", holder, heartbeat_timeout):
        content = _holder(root / "leases").content or holder.content
        at_work = describe(content["driver"]) if content else "another driver"
        raise UserError(
            f"{root}: {at_work} is at work on this run; `efface status` shows how far it is, `efface cancel` stops it"
        )
    return holder.number


def active_driver(root: Path) -> str | None:
    """The driver that holds a run and has not released it, in words; it may have died since."""
    content = _holder(root / "leases").content
    if not content or content.get("released") or is_alive(content["driver"]) is False:
        return None
    return describe(content["driver"])


def held_lease(root: Path) -> str | None:
    """The id of the lease that this process holds on a run; None where it holds none."""
    content = _holder(root / "leases").content
    own = content and not content.get("released") and content["driver"] == this_process()
    return str(content["id"]) if content and own else None


def check_shared(root: Path, lease_id: str | None, timeout: float = SHARING_TIMEOUT) -> None:
    """Raises LocationError where this process, on whatever node, does not see the run folder of the driver that holds
    the lease `lease_id`; None: the driver is this process."""
    if lease_id is None:
        return
    deadline = time.monotonic() + timeout
    while (content := _holder(root / "leases").content) is None or content.get("id") != lease_id:
        if time.monotonic() > deadline:
            raise LocationError(
                f"{root}: node {os.uname().nodename} does not see the driver's run folder; "
                "give --out a folder that all nodes share, or the URL of an object store"
            )
        time.sleep(min(1.0, timeout / 10))


def _is_over(folder: Path, holder: _Holder, heartbeat_timeout: float) -> bool:
    """Whether a lease's driver works no more; waits where only waiting can tell."""
    if holder.content:
        if holder.content.get("released"):
            return True
        alive = is_alive(holder.content["driver"])
        if alive is not None:
            return not alive
    deadline = time.monotonic() + heartbeat_timeout
    while time.monotonic() < deadline:
        time.sleep(min(1.0, heartbeat_timeout / 10))
        now = _holder(folder)
        if now != holder:
            return bool(now.content and now.content.get("released"))
    return True


def _holder(folder: Path) -> _Holder:
    try:
        numbers = [int(path.stem) for path in folder.iterdir() if path.stem.isdecimal() and path.suffix == ".json"]
    except (FileNotFoundError, NotADirectoryError):  # of a folder that does not exist, stores say either
        return _Holder(0, None)
    except OSError as error:
        raise storage_error(folder, "read", error) from None
    return _Holder(max(numbers), _read(folder / f"{max(numbers):08d}.json")) if numbers else _Holder(0, None)


def _read(path: Path) -> LeaseContent | None:
    """What a lease says; None of one that is missing or damaged."""
    try:
        content = json.loads(read_plain(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(path, "read", error) from None
    except (ValueError, RecursionError):
        return None
    driver = content.get("driver") if isinstance(content, dict) else None
    if not isinstance(driver, dict) or not isinstance(content.get("id"), str) or not {*this_process()} <= {*driver}:
        return None
    return cast(LeaseContent, content) if type(driver["pid"]) is int and driver["pid"] > 0 else None
