"""What a run folder still lacks of a plan, from the records and failures alone."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from efface.cluster.campaign.plan import Plan
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.calibration import CalibrationTask
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask

Kind = TypeVar("Kind", bound=Task)


@dataclass
class RemainingTasks:
    """The tasks that are left, and what is there for them."""

    tasks: list[Task] = field(default_factory=list)
    """In the order of the plan."""
    products: set[str] = field(default_factory=set)
    """What tasks may require and is there already."""
    failed: list[Model] = field(default_factory=list)
    """Models given up earlier; no task about them remains."""
    blocked: list[Model] = field(default_factory=list)
    """Models that need a failed one to be made; no task about them remains either."""

    @classmethod
    def everything(cls, plan: Plan) -> "RemainingTasks":
        """All of a plan, of which nothing is done."""
        return cls(list(plan.tasks), set(plan.products))

    @property
    def is_empty(self) -> bool:
        return not self.tasks

    def of_kind(self, kind: type[Kind]) -> list[Kind]:
        return [task for task in self.tasks if isinstance(task, kind)]

    @property
    def calibrations(self) -> list[CalibrationTask]:
        return self.of_kind(CalibrationTask)

    @property
    def trainings(self) -> list[TrainingTask]:
        return self.of_kind(TrainingTask)

    @property
    def shards(self) -> list[Shard]:
        return self.of_kind(Shard)


def remaining_tasks(plan: Plan, folder: RunFolder) -> RemainingTasks:
    """What is missing."""
    return find_remaining(plan, set(folder.records(plan.tasks)), set(folder.failures(plan.models)))


def find_remaining(plan: Plan, done: set[str], failed: Iterable[str]) -> RemainingTasks:
    """What is missing where the tasks with the ids `done` are done, and the models with the ids `failed` given up."""
    given_up = set(failed)
    remaining = RemainingTasks(products=set(plan.products))
    remaining.failed = [model for model in plan.models if model.id in given_up]
    lost: set[str] = set()
    blocked: dict[str, Model] = {}
    for task in plan.tasks:
        if task.id in done:
            if task.provides:
                remaining.products.add(task.provides)
            continue
        failed_model = task.model is not None and task.model.id in given_up
        if not failed_model and lost.isdisjoint(task.requires):
            remaining.tasks.append(task)
            continue
        if task.provides:
            lost.add(task.provides)
        if task.model and not failed_model:
            blocked[task.model.id] = task.model
    remaining.blocked = list(blocked.values())
    return remaining
