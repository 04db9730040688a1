"""Records of finished tasks: what one says, and whether it still holds. Nothing here changes a file.

A record is a JSON file beside the outputs that it names, with their sizes and SHA-256, and carries a check of itself.
It was written after them, so what has no record is not done; nor is what has one that does not hold.
"""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from efface.files import content_id, is_remote, sha256_file, storage_error
from efface.plain_files import check_plain, read_plain

Json = dict[str, Any]
NUMBER, TEXT = (int, float, type(None)), (str, type(None))  # tuples: a scan asks 100,000 times


class Output(NamedTuple):
    """A file that a task wrote."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What is kept of a finished task."""

    id: str
    """The task's."""
    kind: str
    outputs: dict[str, Output]
    """By their names in the folder of the record."""
    seconds: float | None = None
    """What it took; None where that is not known."""
    device: str | None = None
    """`cpu`, or the GPU's name in torch."""
    facts: Json = field(default_factory=dict)
    """What its kind adds, as JSON."""

    def as_json(self) -> Json:
        """With its check."""
        data = {
            "id": self.id,
            "kind": self.kind,
            "outputs": {name: output._asdict() for name, output in self.outputs.items()},
            "seconds": self.seconds,
            "device": self.device,
            "facts": self.facts,
        }
        return {**data, "check": content_id(data)}


@dataclass(frozen=True)
class Failure:
    """Why a model was given up."""

    stage: str
    """At what: `training`, `judging, shard 3`."""
    reason: str
    details: str = ""
    """A log, or a traceback."""


class Entry(NamedTuple):
    """A file in a listing: its size in bytes, and when it was changed last, by the clock of its store."""

    size: int
    changed: float


def find_record(folder: Path, name: str, id: str, entry: Callable[[str], Entry | None]) -> Record | None:
    """The record of the task `id`, if it is as it was written and its outputs are what it says; else None.

    An output is known by its size; one that is newer than its record is hashed. `entry` looks a file of the folder up.
    """
    of_record = entry(name)
    record = parse_record(read_json(folder, name)) if of_record else None
    if of_record is None or record is None or record.id != id:
        return None
    for output, written in record.outputs.items():
        found = entry(output)
        if found is None or found.size != written.bytes:
            return None
        if found.changed > of_record.changed and sha256(folder / output) != written.sha256:
            return None
    return record


def is_intact(folder: Path, record: Record) -> bool:
    """Whether every byte of its outputs is as it was written: all are hashed."""
    return all(sha256(folder / name) == output.sha256 for name, output in record.outputs.items())


def parse_record(data: Json | None) -> Record | None:
    """The record in some JSON, if it is what was once written."""
    try:
        if data is None or data.pop("check", None) != content_id(data):
            return None
        outputs = {name: _output(name, **written) for name, written in data["outputs"].items()}
        record = Record(data["id"], data["kind"], outputs, data["seconds"], data["device"], data["facts"])
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):  # no record that was written here
        return None
    return record if _is_typed(record) else None


def _output(name: str, bytes: Any, sha256: Any) -> Output:
    """Raises ValueError for what no output is; it is beside its record."""
    if "/" in name or not isinstance(bytes, int) or not isinstance(sha256, str):
        raise ValueError(name)
    return Output(bytes, sha256)


def _is_typed(record: Record) -> bool:
    """Whether its fields, which come from a file, have their types."""
    return (
        isinstance(record.id, str)
        and isinstance(record.kind, str)
        and isinstance(record.seconds, NUMBER)
        and isinstance(record.device, TEXT)
        and isinstance(record.facts, dict)
    )


def parse_failure(data: Json | None) -> Failure | None:
    """The failure in some JSON; None of anything else."""
    if data is None or not all(isinstance(data.get(key), str) for key in ("stage", "reason", "details")):
        return None
    return Failure(data["stage"], data["reason"], data["details"])


def list_files(folder: Path) -> dict[str, Entry]:
    """The files in a folder by name; none where there is no folder. Raises StorageError where it cannot be read."""
    try:
        if is_remote(folder):
            from efface.object_store import call_store

            store: Any = folder
            files = call_store(folder, lambda: store.fs.ls(store.path, detail=True))
            return {f["name"].rpartition("/")[2]: Entry(f["size"] or 0, _modified_at(f)) for f in files}
        with os.scandir(folder) as entries:
            stats = {entry.name: _stat(entry) for entry in entries if entry.name[0] != "."}
        return {name: Entry(stat.st_size, stat.st_mtime_ns) for name, stat in stats.items() if stat}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise storage_error(folder, "read", error) from None


def _stat(entry: "os.DirEntry[str]") -> os.stat_result | None:
    """None of a file that has just gone, and of a link to nothing or to itself."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return None
    except OSError:
        if entry.is_symlink():
            return None
        raise


def look_up(path: Path) -> Entry | None:
    """A file; None where there is none. Raises StorageError where that cannot be determined."""
    try:
        stat: Any = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise storage_error(path, "read", error) from None
    return Entry(stat.st_size, stat.st_mtime if is_remote(path) else stat.st_mtime_ns)


def sha256(path: Path) -> str | None:
    """The hash of a file; None where it is gone, or is no plain file."""
    try:
        check_plain(path)
        return sha256_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EISDIR):  # as `check_plain` says of a pipe and of a folder
            return None
        raise


def read_json(folder: Path, name: str) -> Json | None:
    """The object in a file; None where there is none, or a damaged one: then the task is simply done again."""
    try:
        data = json.loads(read_plain(folder / name if is_remote(folder) else f"{folder}/{name}"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _modified_at(file: Json) -> float:
    moment = file.get("LastModified") or file.get("created")
    return moment.timestamp() if moment else 0.0
