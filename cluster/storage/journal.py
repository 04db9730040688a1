"""The journal of a run: one line of JSON for everything that a driver saw happen, kept in the run folder.

    logs/20261124T031440.123456Z.jsonl         one file for each driver, named by when it started
    logs/20261124T031440.123456Z-0001.jsonl    on an object store, which cannot append: several, 1 MiB each at most

Every line has a `time` (UTC) and an `event`: `opened` and `closed` by the driver, `started` and `ended` of a piece of
work. A driver that was killed leaves no `closed`, and perhaps half a last line, which readers pass over.
"""

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from efface import __version__
from efface.cluster.campaign.plan import CalibrationTask, Model
from efface.cluster.storage.run_folder import RunFolder, Task
from efface.cluster.workers.worker import Outcome
from efface.errors import StorageError
from efface.files import create_exclusive, is_remote, write_atomic

UPLOAD_INTERVAL = 30.0
"""Seconds between two uploads to an object store: so much of the journal a killed driver can lose there."""

PART_BYTES = 2**20
"""The size at which a file on an object store is full, so that no upload is larger."""


class Journal:
    """A watcher that writes down what it sees. A journal that cannot be written stops no run: it is made up later."""

    def __init__(self, folder: RunFolder) -> None:
        """Raises StorageError where the run folder cannot be written at all."""
        self._file: _Appended | _Uploaded = (_Uploaded if is_remote(folder.root) else _Appended)(folder.logs)
        self._clock = TaskTimer()
        self._write_event("opened", host=socket.gethostname(), process=os.getpid(), version=__version__)

    def started(self, worker: int, task: Task) -> None:
        self._clock.started(worker, task)
        self._write_event("started", worker=worker, **_task_fields(task))

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        """`seconds`: since the work came first in its worker's line. `details`: the traceback of what went wrong."""
        outcome_fields: dict[str, Any] = {"state": outcome.state, "seconds": round(self._clock.ended(worker, task), 3)}
        if outcome.state != "done":
            outcome_fields |= {"will_retry": will_retry, "reason": outcome.reason, "details": outcome.details}
        self._write_event("ended", worker=worker, **_task_fields(task), **outcome_fields)

    def tick(self) -> None:
        self._file.tick()

    def close(self) -> None:
        self._write_event("closed")
        self._file.close()

    def _write_event(self, event: str, **facts: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(json.dumps({"time": now, "event": event, **facts}).encode() + b"\n")


def read_journal(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """All lines of all drivers, in the order in which the drivers started. Raises StorageError."""
    try:
        for path in sorted(folder.logs.glob("*.jsonl"), key=lambda path: path.name):
            for line in path.read_bytes().splitlines():
                event = _parsed(line)
                if event:
                    yield event
    except OSError as error:
        raise StorageError(f"{folder.logs}: cannot be read ({error.strerror or error})") from None


class TaskTimer:
    """What each worker has in its line, and how long work takes: from when it comes first there until it ends."""

    def __init__(self) -> None:
        self._lines: dict[int, list[str]] = {}
        """Ids of work by worker; a worker without any is not in it."""
        self._since: dict[int, float] = {}
        """When a worker began the first of its line."""
        self._copies: Counter[str] = Counter()
        """How many workers have a piece of work: a shard may be done by two at once."""

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
    """A local file, to which each line is appended at once and in one piece."""

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


def _task_fields(task: Task) -> dict[str, Any]:
    """What a piece of work is: its kind and id, and the label and concepts of the model it makes or judges."""
    if isinstance(task, CalibrationTask):
        return {"task": "calibration", "id": task.id, "judge": task.judge}
    model = task if isinstance(task, Model) else task.model
    about = {"label": model.label, "concepts": list(model.job.concepts) if model.job else []}
    if isinstance(task, Model):
        return {"task": "job", "id": task.id, **about}
    return {"task": "shard", "id": task.id, "model": model.id, "index": task.index, **about}


FIELD_TYPES: dict[str, Any] = {
    "time": str, "event": str, "worker": int, "task": str, "id": str, "judge": str, "label": str, "concepts": list,
    "model": str, "index": int, "state": str, "seconds": (int, float),
}  # fmt: skip
"""Of what may stand in an event and is read."""

TASK_FIELDS = {"calibration": {"judge"}, "job": {"label", "concepts"}, "shard": {"label", "concepts", "model", "index"}}
"""What an event says of each kind of work."""


def _parsed(line: bytes) -> dict[str, Any] | None:
    """None for half a line, or one that was changed since."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not all(
        isinstance(event[key], FIELD_TYPES[key]) for key in FIELD_TYPES.keys() & event.keys()
    ):
        return None
    needed = {"time", "event"}
    if event.get("event") in ("started", "ended"):
        needed |= {"worker", "task", "id"} | TASK_FIELDS.get(event.get("task", ""), {"a known kind"})
    if event.get("event") == "ended":
        needed |= {"state", "seconds"}
    return event if needed <= event.keys() else None
