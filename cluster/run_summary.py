"""How far a run is, from its records and failures alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from efface.cluster.campaign.plan import Plan
from efface.cluster.storage.records import Failure, Record
from efface.cluster.storage.remaining import find_remaining
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.judging import Shard


@dataclass(frozen=True)
class KindSummary:
    """The tasks of one kind, in units."""

    unit: str
    all: int
    done: int
    failed: int
    """Given up, with their model or because what they require cannot be made."""
    left: int


@dataclass(frozen=True)
class JobSummary:
    """The models that jobs make."""

    all: int
    done: int
    """Made, and not given up since."""
    failed: int
    blocked: int
    """Need a failed one to be made."""
    left: int


@dataclass(frozen=True)
class FailedModel:
    """A model that was given up."""

    job: str
    """The name of its folder."""
    stage: str
    reason: str


@dataclass(frozen=True)
class RunSummary:
    """How far a run is."""

    campaign: str
    jobs: JobSummary
    tasks: dict[str, KindSummary]
    """By kind."""
    failures: list[FailedModel]
    broken: dict[str, dict[str, int]]
    """Images that are no evidence, by the folder of their model and their error."""


def summarize(plan: Plan, folder: RunFolder) -> RunSummary:
    """Read every record and failure of the plan."""
    records = folder.records(plan.tasks)
    done = set(records)
    failures: dict[str, Failure] = folder.failures(plan.models)
    remaining = find_remaining(plan, done, failures)
    left = {task.id for task in remaining.tasks}
    kinds: dict[str, list[int]] = {}
    units = {task.kind: task.unit for task in plan.tasks}
    for task in plan.tasks:
        counts = kinds.setdefault(task.kind, [0, 0, 0])
        counts[0 if task.id in done else 2 if task.id in left else 1] += task.size
    given_up = {model.id for model in (*remaining.failed, *remaining.blocked)}
    return RunSummary(
        campaign=plan.name,
        jobs=JobSummary(
            all=len(plan.jobs),
            done=sum(model.id in done and model.id not in given_up for model in plan.jobs),
            failed=sum(1 for model in remaining.failed if model.job),
            blocked=len(remaining.blocked),
            left=len(remaining.trainings),
        ),
        tasks={kind: KindSummary(units[kind], sum(counts), *counts) for kind, counts in kinds.items()},
        failures=[
            FailedModel(model.folder, failures[model.id].stage, failures[model.id].reason) for model in remaining.failed
        ],
        broken=_broken(plan, records),
    )


def _broken(plan: Plan, records: Mapping[str, Record]) -> dict[str, dict[str, int]]:
    broken: dict[str, Counter[str]] = {}
    for task in plan.of_kind(Shard):
        record = records.get(task.id)
        if record and record.facts.get("broken"):
            broken.setdefault(task.model.folder, Counter()).update(record.facts["broken"])
    return {folder: dict(errors) for folder, errors in broken.items()}
