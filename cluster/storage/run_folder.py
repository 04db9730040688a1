"""The run folder: the one place that knows where everything of a campaign lies, and what is already done.

    campaign.yaml                                  the campaign as it was read
    calibration/<judge>-<id>.json                  how a judge does on images of the base; <judge>-<id>.record.json
    jobs/<job>/delta.safetensors, record.json      a finished job; failure.json instead for one that cannot be;
                                                   log.txt; checkpoint.safetensors while it is trained
    evaluations/<model>/<shard>.verdicts.parquet   rows of the image table
    evaluations/<model>/<shard>.images.parquet     the images behind them, PNG in Parquet
    evaluations/<model>/<shard>.json               the shard's record
    table.parquet scores.json leaderboard.csv sheets/<concept>.png stages/<method>-<id>.csv
    leases/ logs/ stop.json                        who works on it, what happened, and a wish that it stop

A record is written after the outputs it names, with their sizes and SHA-256, and carries a check of itself; what has no
record is not done. Every write is atomic, so a run may be killed at any moment and started again. The folder is local,
on a shared file system, or on an object store.
"""

import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from efface.cluster.campaign.plan import CalibrationTask, Model, Shard
from efface.cluster.storage.lease import active_driver
from efface.errors import UserError
from efface.files import as_path, content_id, is_remote, sha256_file, slug, storage_error, write_atomic, write_json

Task = CalibrationTask | Model | Shard


class Damaged(Exception):
    """A file that work builds on is not what was once written; it has to be made again first."""


class RunFolder:
    """Paths, records and results of one campaign."""

    def __init__(self, root: str | Path) -> None:
        self.root = as_path(root)
        self._evaluations: dict[str, Path] = {}
        """Folders of evaluations by the model's id: a campaign has many shards of each."""

    # where things lie

    @property
    def campaign(self) -> Path:
        return self.root / "campaign.yaml"

    @property
    def sign(self) -> Path:
        """What makes a folder a run folder."""
        return self.root / "run.json"

    @property
    def evaluation(self) -> Path:
        """In place of a campaign, where deltas that existed before are judged."""
        return self.root / "evaluation.yaml"

    @property
    def table(self) -> Path:
        return self.root / "table.parquet"

    @property
    def scores(self) -> Path:
        return self.root / "scores.json"

    @property
    def leaderboard(self) -> Path:
        return self.root / "leaderboard.csv"

    def stages(self, label: str) -> Path:
        """What a chain of requests came to after each of them."""
        return self.root / "stages" / f"{slug(label)}-{content_id(label)[:8]}.csv"

    @property
    def cache(self) -> Path:
        """Anchor images, concept neighbourhoods: data that jobs share, keyed by content."""
        return self.root / "cache"

    @property
    def sheets(self) -> Path:
        return self.root / "sheets"

    @property
    def logs(self) -> Path:
        """What drivers noted, one file for each."""
        return self.root / "logs"

    def delta(self, model: Model) -> Path:
        return self.job(model) / "delta.safetensors"

    def parent_delta(self, model: Model) -> Path | None:
        """Of the model that this one continues, in a chain of requests."""
        return self.root / "jobs" / model.predecessor / "delta.safetensors" if model.predecessor else None

    def checkpoint(self, model: Model) -> Path:
        return self.job(model) / "checkpoint.safetensors"

    def curves(self, model: Model) -> Path:
        """Loss, learning rate and gradient norm of a job's training, where its campaign asks for them."""
        return self.job(model) / "curves"

    def log(self, model: Model) -> Path:
        """What a job's training printed."""
        return self.job(model) / "log.txt"

    def verdicts(self, shard: Shard) -> Path:
        return self._evaluation(shard.model) / f"{self._stem(shard)}.verdicts.parquet"

    def images(self, shard: Shard) -> Path:
        return self._evaluation(shard.model) / f"{self._stem(shard)}.images.parquet"

    def calibration(self, calibration: CalibrationTask) -> Path:
        return self.root / "calibration" / f"{slug(Path(calibration.judge).stem)}-{calibration.id}.json"

    # what is done

    def record(self, task: Task) -> dict[str, Any] | None:
        """The record of finished work; None if it is not done, or a file it names is gone or was changed since.

        An output is known by its size; one that is newer than its record is hashed. A record whose outputs are not what
        it says is withdrawn.
        """
        folder, name = self._record_location(task)
        return _valid_record(folder, name, task.id, lambda name: _entry(folder / name))

    def records(self, tasks: Iterable[Task]) -> dict[str, dict[str, Any]]:
        """The records of those works that are done, by their ids. A folder is listed once for all its works."""
        found = {}
        for folder, group in itertools.groupby(
            ((*self._record_location(task), task.id) for task in tasks), itemgetter(0)
        ):
            listing = _entries(folder)
            for _, name, id in group:
                record = _valid_record(folder, name, id, listing.get)
                if record is not None:
                    found[id] = record
        return found

    def verified(self, task: Task, names: Iterable[str] | None = None) -> dict[str, Any] | None:
        """The record of finished work whose outputs (or those of `names`) have just been hashed, every byte; else it
        is withdrawn."""
        record = self.record(task)
        if record is None:
            return None
        path, outputs = self._record(task), record["outputs"]
        if all(_sha256(path.parent / name) == outputs[name]["sha256"] for name in names or outputs):
            return record
        path.unlink()
        return None

    def checked_delta(self, model: Model) -> Path:
        """The delta of a finished job, every byte of it hashed. Raises Damaged where it is not what was once written;
        its record is withdrawn then, so that the job is done again."""
        return _checked(self.delta(model))

    def checked_parent(self, model: Model) -> Path | None:
        """The same of the model that this one continues, in a chain of requests."""
        parent = self.parent_delta(model)
        return _checked(parent) if parent else None

    def failure(self, model: Model) -> dict[str, Any] | None:
        """Why a job cannot be finished, if it was tried and failed."""
        return _read_json(self.job(model), "failure.json")

    def failures(self, models: Iterable[Model]) -> dict[str, dict[str, Any]]:
        """Why jobs cannot be finished, by their ids."""
        failures = {model.id: self.failure(model) for model in models}
        return {name: failure for name, failure in failures.items() if failure is not None}

    def finish(self, task: Task, outputs: list[Path], **facts: Any) -> dict[str, Any]:
        """Write the record of finished work; its outputs lie beside it and are whole."""
        kept = {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in outputs}
        record = {"id": task.id, "outputs": kept, **facts}
        write_json(self._record(task), {**record, "check": content_id(record)})
        if isinstance(task, Model):
            for name in ("failure.json", "checkpoint.safetensors"):
                (self.job(task) / name).unlink(missing_ok=True)
        return record

    def fail(self, task: Model | Shard, reason: str, details: str) -> None:
        """Keep why a job, or a shard of its model, was given up."""
        model = task if isinstance(task, Model) else task.model
        stage = "training" if isinstance(task, Model) else f"judging, shard {task.index}"
        write_json(self.job(model) / "failure.json", {"stage": stage, "reason": reason, "details": details})

    def clear_failure(self, model: Model) -> None:
        """Forget a failure, so that the job is tried again."""
        (self.job(model) / "failure.json").unlink(missing_ok=True)

    def request_stop(self) -> None:
        """Ask whoever works on this run, on any machine, to lay it down."""
        write_json(self.root / "stop.json", {"stop_request": uuid.uuid4().hex})

    def stop_request(self) -> str | None:
        """The last wish to stop; who finds another one than at its start lays down its work."""
        stop_request = _read_json(self.root, "stop.json")
        return str(stop_request.get("stop_request")) if stop_request else None

    def open(self, config_file: Path, text: str, mutable_keys: Iterable[str] = ()) -> None:
        """Make the folder ready for what the YAML `text` orders, kept in the file `config_file` of the folder.

        The keys in `mutable_keys` may change from one start to the next, and everything as long as nothing was done.
        Raises UserError where the folder holds a run of another order, or cannot be written.
        """
        try:
            if self.root.exists() and not self.root.is_dir():
                raise UserError(f"{self.root}: is a file, should be a folder for the run")
            before = config_file.read_text(encoding="utf-8", errors="replace") if config_file.is_file() else text
        except OSError as error:
            raise storage_error(config_file, "read", error) from None
        if is_remote(self.root) and str(self.root).startswith("memory:"):
            raise UserError(f"{self.root}: ends with this process; give --out a path or the URL of an object store")
        if config_file.is_file() and not self.sign.is_file():
            raise UserError(f"{config_file}: was not written by a run; give --out another folder")
        old, new = (_drop_keys(mutable_keys, whole) for whole in (before, text))
        if old != new and not self._untouched():
            difference = _difference(old, new)
            raise UserError(
                f"{config_file}: the run there is of another order ({difference}); give --out another folder"
            )
        write_json(self.sign, {"format": 2})
        write_atomic(config_file, text.encode())

    def _untouched(self) -> bool:
        """Whether nothing of what was ordered here has been done, and nobody is at work on it."""
        done = any(_entries(self.root / subfolder) for subfolder in ("calibration", "jobs", "evaluations"))
        return not done and active_driver(self.root) is None

    def must_exist(self) -> None:
        """Raises UserError where this is no run folder."""
        if not self.campaign.is_file():
            raise UserError(f"{self.root}: is no run folder, it holds no {self.campaign.name}")

    def job(self, model: Model) -> Path:
        return self.root / "jobs" / model.folder

    def _evaluation(self, model: Model) -> Path:
        return self.root / "evaluations" / model.folder

    def _stem(self, shard: Shard) -> str:
        return f"{shard.index:05d}-{shard.id}"

    def _record(self, task: Task) -> Path:
        folder, name = self._record_location(task)
        return folder / name

    def _record_location(self, task: Task) -> tuple[Path, str]:
        """The folder that a piece of work is kept in, and the name of its record there."""
        if isinstance(task, CalibrationTask):
            path = self.calibration(task).with_suffix(".record.json")
            return path.parent, path.name
        if isinstance(task, Model):
            return self.job(task), "record.json"
        if task.model.id not in self._evaluations:
            self._evaluations[task.model.id] = self._evaluation(task.model)
        return self._evaluations[task.model.id], f"{self._stem(task)}.json"


def _valid_record(folder: Path, name: str, id: str, entry: Callable[[str], "_Entry | None"]) -> dict[str, Any] | None:
    """The record of work `id`, if it is as it was written, and its outputs are what it says."""
    of_record = entry(name)
    record = _intact(_read_json(folder, name)) if of_record else None
    if of_record is None or record is None or record.get("id") != id:
        return None
    for output, facts in record["outputs"].items():
        found = entry(output)
        if found is None or found.size != facts["bytes"]:
            return None
        if found.changed > of_record.changed and _sha256(folder / output) != facts["sha256"]:
            (folder / name).unlink()
            return None
    return record


def _checked(delta: Path) -> Path:
    path = delta.with_name("record.json")
    record = _intact(_read_json(delta.parent, path.name))
    if record is None or record["outputs"].get(delta.name, {}).get("sha256") != _sha256(delta):
        path.unlink(missing_ok=True)
        raise Damaged(f"{delta}: is not as it was written")
    return delta


def _drop_keys(keys: Iterable[str], text: str) -> str:
    """The text of a YAML mapping without those of its keys: a key's lines are its own and the indented ones below."""
    kept, leaving = [], False
    for line in text.splitlines():
        if not line.startswith((" ", "-")):
            leaving = line.partition(":")[0] in keys
        if not leaving:
            kept.append(line)
    return "\n".join(kept)


def _difference(before: str, now: str) -> str:
    """The lines that two YAML texts do not share, at most three of each."""
    old, new = before.splitlines(), now.splitlines()
    gone = [line.strip() for line in old if line not in new][:3]
    come = [line.strip() for line in new if line not in old][:3]
    return f"there: {', '.join(gone) or 'nothing more'}; asked for now: {', '.join(come) or 'nothing more'}"


class _Entry(NamedTuple):
    """A file in a listing: its size in bytes, and when it was changed last, by the clock of its store."""

    size: int
    changed: float


def _entries(folder: Path) -> dict[str, _Entry]:
    """The files in a folder by name; none where there is no folder. Raises StorageError where it cannot be read."""
    try:
        if is_remote(folder):
            from efface.object_store import call_store

            store: Any = folder
            files = call_store(folder, lambda: store.fs.ls(store.path, detail=True))
            return {f["name"].rpartition("/")[2]: _Entry(f["size"] or 0, _modified_at(f)) for f in files}
        with os.scandir(folder) as entries:
            stats = {entry.name: entry.stat() for entry in entries if entry.name[0] != "."}
        return {name: _Entry(stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise storage_error(folder, "read", error) from None


def _entry(path: Path) -> _Entry | None:
    """A file; None where there is none. Raises StorageError where that cannot be told."""
    try:
        stat: Any = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise storage_error(path, "read", error) from None
    return _Entry(stat.st_size, stat.st_mtime if is_remote(path) else stat.st_mtime_ns)


def _modified_at(file: dict[str, Any]) -> float:
    moment = file.get("LastModified") or file.get("created")
    return moment.timestamp() if moment else 0.0


def _sha256(path: Path) -> str | None:
    """The hash of a file; None where it is gone."""
    try:
        return sha256_file(path)
    except FileNotFoundError:
        return None


def _read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The record in a file; None where there is none, or a damaged one: then the work is simply done again."""
    try:
        if is_remote(folder):
            data = json.loads((folder / name).read_bytes())
        else:
            with open(f"{folder}/{name}", "rb") as file:
                data = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _intact(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """A record without its check, if it is what was once written."""
    try:
        intact = record and record.pop("check", None) == content_id(record) and _names_outputs(record)
        return record if intact else None
    except (ValueError, RecursionError):  # no JSON that was written here
        return None


def _names_outputs(record: dict[str, Any]) -> bool:
    """Whether a record says of each of its outputs, files beside it, how large it is and what its hash is."""
    outputs = record.get("outputs")
    return isinstance(outputs, dict) and all(
        "/" not in name
        and isinstance(output, dict)
        and isinstance(output.get("bytes"), int)
        and isinstance(output.get("sha256"), str)
        for name, output in outputs.items()
    )
