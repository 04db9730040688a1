"""What a run folder needs no more: half-written files, checkpoints and caches of finished jobs, work of no plan."""

from collections.abc import Iterator
from pathlib import Path

from efface.cluster.lease import Lease
from efface.cluster.run import Run


def collect(run: Run, dry_run: bool = False) -> dict[str, int]:
    """Remove it, while nobody works on the run; what it was, and how many bytes. Raises UserError where somebody does.

    Nothing is removed that a record names, so nothing has to be done again.
    """
    with Lease(run.folder.root):
        removed: dict[str, int] = {}
        for what, path in _garbage(run):
            removed[what] = removed.get(what, 0) + path.stat().st_size
            if not dry_run:
                path.unlink()
        return removed


def _garbage(run: Run) -> Iterator[tuple[str, Path]]:
    folder, plan = run.folder, run.plan
    models = {model.folder: model for model in plan.models}
    made = folder.records(plan.jobs)
    all_made = len(made) == len(plan.jobs)
    for path in sorted(path for path in folder.root.rglob("*") if path.is_file()):
        room, *rest = path.relative_to(folder.root).parts
        model = models.get(rest[0]) if rest else None
        if path.name.startswith("."):
            yield "half-written files", path
        elif room in ("jobs", "evaluations") and model is None:
            yield "work that this campaign does not ask for", path
        elif room == "jobs" and model and model.id in made and path == folder.checkpoint(model):
            yield "checkpoints of finished jobs", path
        elif room == "cache" and all_made:
            yield "training data of finished jobs", path
