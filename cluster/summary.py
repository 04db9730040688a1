"""How far a run is, from its records and failures alone."""

from dataclasses import dataclass

from efface.cluster.campaign.plan import Plan
from efface.cluster.storage.records import Failure
from efface.cluster.storage.remaining import find_remaining
from efface.cluster.storage.run_folder import RunFolder


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


def summarize(plan: Plan, folder: RunFolder) -> RunSummary:
    """Read every record and failure of the plan."""
    done = set(folder.records(plan.tasks))
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
    )
