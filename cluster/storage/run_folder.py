"""The run folder: what is done, what was given up, and who has asked to stop. Where things lie is in `paths.py`.

Every write is atomic, so a run may be killed at any moment and started again. Looking changes nothing; damage is
repaired by `repair.py`.
"""

import itertools
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.cluster.storage import opening
from efface.cluster.storage.paths import RunPaths
from efface.cluster.storage.records import (
    Failure,
    Output,
    Record,
    find_record,
    is_intact,
    list_files,
    look_up,
    parse_failure,
    parse_record,
    read_json,
    sha256,
)
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import DamagedInput, Task
from efface.files import local_copy, sha256_file, write_atomic, write_json

if TYPE_CHECKING:
    from efface.models.delta import Delta


class RunFolder(RunPaths):
    """Paths, records and deltas of one run."""

    # what is done

    def record(self, task: Task) -> Record | None:
        """The record of a finished task; None if it is not done, or an output is gone or was changed since."""
        folder = self.root / task.folder
        return find_record(folder, f"{task.stem}.json", task.id, lambda name: look_up(folder / name))

    def records(self, tasks: Iterable[Task]) -> dict[str, Record]:
        """The records of those tasks that are done, by their ids. A folder is listed once for all its tasks."""
        found = {}
        located = ((task.folder, f"{task.stem}.json", task.id) for task in tasks)
        for name, group in itertools.groupby(located, itemgetter(0)):
            folder = self.root / name
            listing = list_files(folder)
            for _, record_name, id in group:
                record = find_record(folder, record_name, id, listing.get)
                if record is not None:
                    found[id] = record
        return found

    def is_intact(self, task: Task) -> bool:
        """Whether a task is done, and every byte of its outputs as it was written."""
        record = self.record(task)
        return record is not None and is_intact(self.root / task.folder, record)

    def finish(
        self,
        task: Task,
        outputs: Iterable[Path],
        *,
        seconds: float | None = None,
        device: str | None = None,
        **facts: Any,
    ) -> Record:
        """Write the record of a finished task, with what its kind adds; its outputs lie beside it and are whole."""
        written = {path.name: Output(path.stat().st_size, sha256_file(path)) for path in outputs}
        record = Record(task.id, task.kind, written, seconds, device, facts)
        write_json(self.record_file(task), record.as_json())
        if task.model and task.provides == task.model.folder:
            self.clear_failure(task.model)
        return record

    def withdraw(self, record: Path) -> None:
        """Remove a record, so that its task is done again."""
        record.unlink(missing_ok=True)

    # deltas

    def read_delta(self, model: Model) -> "Delta":
        """The delta of a model that was made. Raises DamagedInput where it is not what was once written."""
        return _read_delta(self.intact_delta(model))

    def read_parent_delta(self, model: Model) -> "Delta | None":
        """The same of the model that this one continues, in a chain of requests."""
        parent = self.intact_parent_delta(model)
        return _read_delta(parent) if parent else None

    def write_delta(self, model: Model, delta: "Delta") -> None:
        _write_delta(self.delta(model), delta)

    def write_control(self, delta: "Delta") -> None:
        """Keep the control of an attack, for workers anywhere."""
        path = self.control(delta.id)
        if not path.is_file():
            _write_delta(path, delta)

    def intact_delta(self, model: Model) -> Path:
        """The delta of a model that was made, once every byte is hashed. Raises DamagedInput."""
        return _intact(self.delta(model))

    def intact_parent_delta(self, model: Model) -> Path | None:
        """The same of the model that this one continues."""
        parent = self.parent_delta(model)
        return _intact(parent) if parent else None

    # what was given up

    def failure(self, model: Model) -> Failure | None:
        """Why a model was given up, if it was."""
        return parse_failure(read_json(self.job(model), self.failure_file(model).name))

    def failures(self, models: Iterable[Model]) -> dict[str, Failure]:
        """Why models were given up, by their ids."""
        failures = {model.id: self.failure(model) for model in models}
        return {name: failure for name, failure in failures.items() if failure is not None}

    def fail(self, model: Model, stage: str, reason: str, details: str = "") -> None:
        """Keep why a model was given up, and at what."""
        write_json(self.failure_file(model), asdict(Failure(stage, reason, details)))

    def clear_failure(self, model: Model) -> None:
        """Remove a failure, so that the model is tried again."""
        self.failure_file(model).unlink(missing_ok=True)

    # requests to stop

    def request_stop(self) -> None:
        """Ask whoever works on this run, on any machine, to stop."""
        write_json(self.stop_file, {"stop_request": uuid.uuid4().hex})

    def stop_request(self) -> str | None:
        """The last request to stop; whoever finds another one than at its start stops."""
        stop_request = read_json(self.root, self.stop_file.name)
        return str(stop_request.get("stop_request")) if stop_request else None

    def clear_stop_request(self) -> None:
        """Of a run that has come to its end."""
        self.stop_file.unlink(missing_ok=True)

    # opening

    def open(self, config_file: Path, text: str, mutable_keys: Iterable[str] = ()) -> None:
        """Make the folder ready for what the YAML `text` requests, kept in the file `config_file` of the folder.

        The keys in `mutable_keys` may change from one start to the next, and everything as long as nothing was done.
        Raises UserError where the folder holds another run, or one of another format, or cannot be written.
        """
        opening.open_folder(self, config_file, text, mutable_keys)

    def must_exist(self) -> None:
        """Raises UserError where this is no run folder of a campaign or an evaluation, or one of another format."""
        opening.must_exist(self)


def _intact(delta: Path) -> Path:
    path = delta.with_name("record.json")
    record = parse_record(read_json(delta.parent, path.name))
    written = record.outputs.get(delta.name) if record else None
    if written is None or written.sha256 != sha256(delta):
        raise DamagedInput(delta, path)
    return delta


def _write_delta(path: Path, delta: "Delta") -> None:
    with local_copy(path) as file:
        delta.save(file)
        if file != path:
            write_atomic(path, file.read_bytes())


def _read_delta(path: Path) -> "Delta":
    from efface.models.delta import Delta

    with local_copy(path) as file:
        return Delta.load(file)
