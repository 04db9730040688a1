"""What a run folder no longer needs: half-written files, jobs of earlier plans, checkpoints and caches of done jobs.

Only what this run wrote is ever removed, for a run folder may be a project of its user too: files of the jobs that the
plan or a journal names, of names that only efface gives. Links are left alone, and so is whatever is elsewhere.
"""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from efface.cluster.campaign.plan import Plan
from efface.cluster.storage.journal import read_journal
from efface.cluster.storage.lease import Lease, wait_until_free
from efface.cluster.storage.paths import COUNT
from efface.cluster.storage.run_folder import RunFolder
from efface.errors import NoSpaceError, UserError
from efface.files import is_remote, is_temporary

COUNT_FILE = re.compile(rf".+-[0-9a-f]{{16}}\.{COUNT}")
"""Names of what says how far a task is; its worker was killed where one stays."""

PARTIAL_FILE_AGE = 3600.0
"""Seconds in which a half-written file may yet become a whole one, and a note of progress be written anew: parts of a
run write without a lease."""

SHARED_FOLDERS = ("calibration", "calibration/parts", "prompts", "sheets", "stages", "leases", "logs", "launch")
"""Subfolders whose files belong to no one model."""

JOB_FILES = {"checkpoint.safetensors", "delta.safetensors", "failure.json", "log.txt"}

CACHE_FILES = re.compile(r"(latents|concept-feature)-[0-9a-f]{16}\.(safetensors|npy)")
"""Names that trainings give to what they keep for others."""


class Garbage(NamedTuple):
    """A file that is no longer needed."""

    kind: str
    path: Path
    bytes: int


def collect(plan: Plan, folder: RunFolder, dry_run: bool = False) -> list[Garbage]:
    """Remove what is no longer needed; `dry_run`: only find it. Raises UserError where a driver works on the run.

    What is requested and has a record stays, so nothing has to be done again. Finished work of other plans,
    of an earlier version of a method, say, stays too: only what has no record goes.
    """
    if not folder.sign.is_file():
        raise UserError(f"{folder.root}: is not a run folder, it holds no {folder.sign.name}")
    with ExitStack() as stack:
        if not dry_run:
            try:
                stack.enter_context(Lease(folder.root))
            except NoSpaceError:  # making room must not need any
                wait_until_free(folder.root)
        found = [Garbage(kind, path, path.stat().st_size) for kind, path in _garbage(plan, folder)]
        for garbage in found:
            if not dry_run:
                garbage.path.unlink(missing_ok=True)
    return found


def _garbage(plan: Plan, folder: RunFolder) -> Iterator[tuple[str, Path]]:
    root, models = folder.root, {model.folder: model for model in plan.models}
    made = folder.records(plan.trainings)
    started = {getattr(event, "model", None) for event in read_journal(folder)}
    for subfolder in ("", *SHARED_FOLDERS):
        yield from _half_written(root / subfolder)
    for subfolder in ("jobs", "evaluations"):
        for path in _folders(root / subfolder):
            if path.name in models or path.name.rpartition("-")[2] in started:
                yield from _half_written(path)
    for path in _folders(root / "jobs"):
        model = models.get(path.name)
        files = _files(path)
        if model and model.id in made:
            yield from (("checkpoints of finished jobs", file) for file in files if file == folder.checkpoint(model))
        elif not model and path.name.rpartition("-")[2] in started and path / "record.json" not in files:
            kind = "unfinished jobs that are not requested here"
            yield from ((kind, file) for file in files if file.name in JOB_FILES)
    if len(made) == len(plan.trainings):
        yield from _half_written(folder.cache)
        cached = (file for file in _files(folder.cache) if CACHE_FILES.fullmatch(file.name))
        yield from (("training data of finished jobs", file) for file in cached)


def _half_written(folder: Path) -> Iterator[tuple[str, Path]]:
    oldest = time.time() - PARTIAL_FILE_AGE
    for path in _files(folder):
        if (is_temporary(path.name) or COUNT_FILE.fullmatch(path.name)) and path.stat().st_mtime < oldest:
            yield "half-written files", path


def _files(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_file()]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder of this run, itself: links lead to what belongs to others."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    if is_remote(folder):
        return entries
    return [] if folder.is_symlink() else [path for path in entries if not path.is_symlink()]
