"""What a run folder needs no more: half-written files, checkpoints and caches of finished jobs, work of no plan."""

import time
from collections.abc import Iterator
from pathlib import Path

from efface.cluster.run import Run
from efface.cluster.storage.lease import Lease

PARTIAL_FILE_AGE = 3600.0
"""Seconds in which a half-written file may yet become a whole one."""


def collect(run: Run, dry_run: bool = False) -> dict[str, int]:
    """Remove it, while nobody works on the run; what it was, and how many bytes. Raises UserError where somebody does.

    What the campaign asks for and has a record stays, so nothing has to be done again. Finished work of other plans,
    of an earlier version of a method, say, stays too: only what has no record goes.
    """
    with Lease(run.folder.root):
        removed: dict[str, int] = {}
        for what, path in _garbage(run):
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            removed[what] = removed.get(what, 0) + size
            if not dry_run:
                path.unlink(missing_ok=True)
        return removed


def _garbage(run: Run) -> Iterator[tuple[str, Path]]:
    folder, plan = run.folder, run.plan
    models = {model.folder: model for model in plan.models}
    made = folder.records(plan.trainings)
    all_made = len(made) == len(plan.trainings)
    for path in sorted(path for path in folder.root.rglob("*") if path.is_file()):
        subfolder, *rest = path.relative_to(folder.root).parts
        model = models.get(rest[0]) if rest else None
        if path.name.startswith("."):
            if time.time() - path.stat().st_mtime < PARTIAL_FILE_AGE:
                continue  # a part of the run, which needs no lease, may be writing it
            yield "half-written files", path
        elif subfolder in ("jobs", "evaluations") and model is None:
            if subfolder == "evaluations" or (path.parent / "record.json").exists():
                continue
            yield "unfinished jobs that this campaign does not ask for", path
        elif subfolder == "jobs" and model and model.id in made and path == folder.checkpoint(model):
            yield "checkpoints of finished jobs", path
        elif subfolder == "cache" and all_made:
            yield "training data of finished jobs", path
