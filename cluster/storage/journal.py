"""The journal of a run: one line of JSON for everything that a driver saw happen, kept in the run folder.

    logs/20261124T031440.123456Z.jsonl         one file for each driver, named by when it started
    logs/20261124T031440.123456Z-0001.jsonl    on an object store, which cannot append: several, 1 MiB each at most

Every line is one of the events below. A driver that was killed leaves no `closed`, and perhaps half a last line, which
readers pass over.
"""

import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from efface import __version__
from efface.cluster.storage.paths import RunPaths
from efface.cluster.storage.records import Json
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.errors import StorageError
from efface.files import create_exclusive, is_remote, storage_error, write_atomic
from efface.plain_files import leaves, read_plain

UPLOAD_INTERVAL = 30.0
"""Seconds between two uploads to an object store: so much of the journal a killed driver can lose there."""

PART_BYTES = 2**20
"""The size at which a file on an object store is full, so that no upload is larger."""


LARGEST = 2**30
"""Bytes of a journal that is read."""

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "deepspeed", "safetensors", "numpy", "ray")
"""Whose versions are written down."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    time: str
    """UTC."""


class DriverOpened(_Line):
    """A driver has started."""

    event: Literal["opened"] = "opened"
    host: str = ""
    process: int = 0
    version: str = ""
    packages: dict[str, str] = {}
    """Versions of what results depend on, by name."""


class DriverClosed(_Line):
    """It has ended in good order."""

    event: Literal["closed"] = "closed"


class _TaskLine(_Line):
    worker: int
    task: str
    """Its kind."""
    id: str
    description: str
    model: str | None = None
    """The id of the model that it makes or is about."""


class TaskStarted(_TaskLine):
    """A worker was given a task."""

    event: Literal["started"] = "started"


class TaskEnded(_TaskLine):
    """It is done with it, in whatever way."""

    event: Literal["ended"] = "ended"
    state: str
    seconds: float
    """From when the task came first in its worker's line until it ended."""
    note: str = ""
    """What should be known of a task that is done."""
    will_retry: bool = False
    reason: str = ""
    details: str = ""
    """The log and traceback of what went wrong."""


Event = DriverOpened | DriverClosed | TaskStarted | TaskEnded

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class Journal:
    """A callback that writes down what it sees. A journal that cannot be written stops no run: it catches up later."""

    def __init__(self, folder: RunFolder) -> None:
        """Raises StorageError where the run folder cannot be written at all."""
        self._file: _Appended | _Uploaded = (_Uploaded if is_remote(folder.root) else _Appended)(folder.logs)
        self._clock = TaskTimer()
        self._write(
            DriverOpened(
                time=_now(),
                host=socket.gethostname(),
                process=os.getpid(),
                version=__version__,
                packages=_versions(),
            )
        )

    def started(self, worker: int, task: Task) -> None:
        self._clock.started(worker, task)
        self._write(TaskStarted(**_about(worker, task)))

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        event = TaskEnded(
            **_about(worker, task),
            state=outcome.state,
            seconds=round(self._clock.ended(worker, task), 3),
            note=outcome.note,
            will_retry=will_retry,
            reason=outcome.reason,
            details=outcome.details,
        )
        self._write(event)

    def tick(self) -> None:
        self._file.tick()

    def close(self) -> None:
        self._write(DriverClosed(time=_now()))
        self._file.close()

    def _write(self, event: Event) -> None:
        self._file.write(event.model_dump_json(exclude_none=True).encode() + b"\n")


def journal_files(folder: RunPaths) -> list[Path]:
    """The journals of all drivers, in the order in which they started: files of the run folder's own."""
    found = sorted(folder.logs.glob("*.jsonl"), key=lambda path: path.name)
    return [path for path in found if path.is_file() and not leaves(path, folder.root)]


def read_journal(folder: RunFolder) -> Iterator[Event]:
    """All events of all drivers, in the order in which the drivers started. Raises StorageError."""
    try:
        for path in journal_files(folder):
            for line in read_plain(path, LARGEST).splitlines():
                try:
                    yield _EVENT.validate_json(line)
                except ValidationError:  # half a line, or one that was changed since
                    continue
    except OSError as error:
        raise storage_error(folder.logs, "read", error) from None


def running_tasks(events: Iterator[Event]) -> list[TaskStarted]:
    """What the workers of the last driver are doing, by worker."""
    doing: dict[tuple[int, str], TaskStarted] = {}
    for event in events:
        if isinstance(event, DriverOpened):
            doing.clear()
        elif isinstance(event, TaskStarted):
            doing[event.worker, event.id] = event
        elif isinstance(event, TaskEnded):
            doing.pop((event.worker, event.id), None)
    return sorted(doing.values(), key=lambda event: event.worker)


def _versions() -> dict[str, str]:
    """Of the `PACKAGES` that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _about(worker: int, task: Task) -> Json:
    """What both events of a task say."""
    return {
        "time": _now(),
        "worker": worker,
        "task": task.kind,
        "id": task.id,
        "description": task.describe(),
        "model": task.model.id if task.model else None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class TaskTimer:
    """What each worker has in its line, and how long tasks take: from when one comes first there until it ends."""

    def __init__(self) -> None:
        self._lines: dict[int, list[str]] = {}
        """Ids of tasks by worker; a worker without any is not in it."""
        self._since: dict[int, float] = {}
        """When a worker began the first of its line."""
        self._copies: Counter[str] = Counter()
        """How many workers have a task: some may be done by two at once."""

    def started(self, worker: int, task: Task) -> None:
        if worker not in self._lines:
            self._since[worker] = time.monotonic()
        self._lines.setdefault(worker, []).append(task.id)
        self._copies[task.id] += 1

    def ended(self, worker: int, task: Task) -> float:
        """Seconds."""
        now, line = time.monotonic(), self._lines[worker]
        seconds = now - self._since[worker]
        self._since[worker] = now
        line.remove(task.id)
        if not line:
            del self._lines[worker]
        self._copies[task.id] -= 1
        return seconds

    def is_running(self, task: Task) -> bool:
        """Whether any worker has it."""
        return self._copies[task.id] > 0

    @property
    def busy(self) -> int:
        """Workers that have something to do."""
        return len(self._lines)


class _Appended:
    """A local file, to which each line is appended at once, whole."""

    def __init__(self, logs: Path) -> None:
        self._file = _new_file(logs, "").open("ab", buffering=0)
        self._unwritten = b""

    def write(self, line: bytes) -> None:
        self._unwritten += line
        self.tick()

    def tick(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError:
            pass  # a full disk, say: what is left is tried again with the next line

    def close(self) -> None:
        self.tick()
        self._file.close()


class _Uploaded:
    """Files on an object store, of which the last is uploaded again now and then until it is full."""

    def __init__(self, logs: Path) -> None:
        self._path = _new_file(logs, "-0001")
        self._lines = b""
        self._uploaded = 0
        self._last = time.monotonic()

    def write(self, line: bytes) -> None:
        self._lines += line

    def tick(self) -> None:
        if time.monotonic() - self._last >= UPLOAD_INTERVAL:
            self._upload()

    def close(self) -> None:
        self._upload()

    def _upload(self) -> None:
        self._last = time.monotonic()
        if len(self._lines) == self._uploaded:
            return
        try:
            write_atomic(self._path, self._lines)
        except StorageError:
            return  # tried again next time
        self._uploaded = len(self._lines)
        if self._uploaded >= PART_BYTES:
            stem, _, number = self._path.stem.rpartition("-")
            self._path = self._path.with_name(f"{stem}-{int(number) + 1:04d}.jsonl")
            self._lines, self._uploaded = b"", 0


def _new_file(logs: Path, suffix: str) -> Path:
    """A new file for a driver that starts now; two that start in the same microsecond get two."""
    while True:
        path = logs / f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')}{suffix}.jsonl"
        if create_exclusive(path, b""):
            return path
