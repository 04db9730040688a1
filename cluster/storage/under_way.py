"""How far a task under way is, as its worker writes it into the run folder: steps of a training, images of a shard.

It is for whoever watches, on this machine or another. Nothing depends on it, so what cannot be written is not.
"""

import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from efface.cluster.storage.paths import RunPaths
from efface.cluster.storage.records import read_json
from efface.cluster.tasks.task import Task
from efface.errors import StorageError
from efface.files import write_json
from efface.plain_files import leaves, read_plain

INTERVAL = 5.0
"""Seconds between two notes of one task, and between two looks at them."""

UNITS = ("image", "instance")
"""What is counted."""

MAX_NUMBER = 1e12


@dataclass(frozen=True)
class Steps:
    """How far a training is."""

    done: int
    of: int
    loss: float

    def __str__(self) -> str:
        return f"step {self.done} of {self.of}, loss {self.loss:.6g}"

    def describe(self) -> str:
        return f"step {self.done} of {self.of}, loss {self.loss:.3g}"


@dataclass(frozen=True)
class Count:
    """How many images, or other pieces, of a task are done."""

    unit: str
    """`image`"""
    done: int
    of: int
    seconds: float
    """Since the task began."""

    def describe(self) -> str:
        return f"{self.unit} {self.done} of {self.of}"

    def done_after(self, seconds: float) -> float:
        """How many are done so long after the task began, if it goes on as fast."""
        return min(float(self.of), self.done / self.seconds * seconds)


HowFar = Steps | Count


def last_steps(log: str) -> Steps | None:
    """The last step that the log of a training names."""
    found = re.findall(r"^step (\d{1,9}) of (\d{1,9}), loss (\S+)$", log, re.M)
    with suppress(ValueError):  # a log of somebody else's
        return Steps(int(found[-1][0]), int(found[-1][1]), float(found[-1][2])) if found else None
    return None


def note_count(folder: RunPaths, task: Task, count: Count) -> None:
    """For others to see; where it cannot be written, nothing happens."""
    with suppress(StorageError):
        write_json(folder.count_file(task), asdict(count))


def remove_count(folder: RunPaths, task: Task) -> None:
    """Once the task has ended."""
    with suppress(StorageError, OSError):
        folder.count_file(task).unlink(missing_ok=True)


def how_far(folder: RunPaths, task: Task, elapsed: float) -> HowFar | None:
    """How far a task is that began `elapsed` seconds ago; None: it has not said so yet, or its kind never does."""
    try:
        log = folder.task_log(task)
        if log:
            return None if leaves(log, folder.root) else last_steps(read_plain(log).decode(errors="replace"))
        path = folder.count_file(task)
        count = _count(read_json(path.parent, path.name) or {})
    except (OSError, StorageError):  # not written yet, or out of reach
        return None
    # One of longer ago is of an earlier attempt, whose worker was killed.
    return count if count and count.seconds <= elapsed + INTERVAL else None


def _count(data: dict[str, Any]) -> Count | None:
    """None where it is none, or one that efface did not write."""
    unit, found = data.get("unit"), (data.get(name) for name in ("done", "of", "seconds"))
    numbers = [number for number in found if isinstance(number, int | float) and 0 < number < MAX_NUMBER]
    if unit not in UNITS or len(numbers) != 3:
        return None
    done, of, seconds = numbers
    return Count(unit, int(done), int(of), float(seconds)) if 1 <= done <= of else None
