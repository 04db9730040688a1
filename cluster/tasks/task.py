"""A task: a unit of work that one worker does from start to end.

A kind of task is one file with a subclass of `Task`. The planner puts its tasks into a plan; queue, dispatch, progress,
metrics, journal and run folder treat all kinds alike, by what a task says of itself. What is done when it has ended is
in `retry_rules.py`.

    @dataclass(frozen=True)
    class Inspection(Task):
        kind = "inspection"
        model: Model
        id: str

        def run(self, worker: Worker) -> None:
            worker.set_resident(self.model)
            path = worker.folder.output(self, "found.json")
            write_json(path, inspect(worker.base))
            worker.finish(self, [path])

A plan may hold 100,000 tasks: what they share (the model, what they require) should be the same objects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from efface.cluster.tasks.model import Model

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.campaign.spec import Limits
    from efface.cluster.workers.worker import Worker
    from efface.models.activation_cost import Precision


class Priority(IntEnum):
    """When a free worker takes a task."""

    FIRST = 0
    """Before all others, for many wait for it."""
    LONG = 1
    """Early; of several, the one that the longest chain of others waits for."""
    FILL = 2
    """It is short, and fills the time around the long ones: first where its model is resident. It may wait in line
    behind another of its priority, and is started a second time where it takes far longer than its like."""


class RateUse(NamedTuple):
    """How a task's cost depends on rates: so many times the rate `name` of a table, such as `seconds_per_image`."""

    table: str
    name: str
    times: float


class CountedCost(NamedTuple):
    """What a task takes by counting, for rates that do not know it."""

    flops: Mapping[Precision, float]
    """Operations, by what they are computed in."""
    bytes: float
    """Of its outputs."""


class Task(ABC):
    """What every kind has to say of itself. Subclasses are frozen dataclasses, and small: workers are sent them."""

    kind: ClassVar[str]
    """A word for the journal, progress, metrics and rates: `training`."""
    unit: ClassVar[str] = "task"
    """What `size` counts: `image`."""
    priority: ClassVar[Priority] = Priority.FILL
    teaches_rates: ClassVar[bool] = True
    """Whether rates are learned from what it took, by the first of its `rate_uses` for seconds and for bytes."""

    if TYPE_CHECKING:  # fields or properties of a kind; dataclasses would take a property here for a field's default

        @property
        def id(self) -> str:
            """Made of the content of everything that decides the result; no two tasks of a plan have the same."""

        @property
        def model(self) -> Model | None:
            """The model that it makes or is about, and that fails with it. None: nothing can be done without it."""

        @property
        def requires(self) -> tuple[str, ...]:
            """The products that have to be there before it starts: the folder of a model, the id of a calibration."""
    else:
        requires = ()

    @abstractmethod
    def run(self, worker: Worker) -> None:
        """Do it, and leave outputs and record in the run folder, the record last, by `worker.finish`.

        Raises DamagedInput where a file it builds on has changed, JobFailure or UserError where it cannot be done
        at all; whatever else it raises is tried again.
        """

    @property
    def provides(self) -> str | None:
        """The name of the product that is there once it is done."""
        return None

    @property
    def size(self) -> int:
        """Its extent in units: images, or 1. Tasks of one kind take times in proportion."""
        return 1

    @property
    def process_group(self) -> bool:
        """Whether several processes may do it together, where the campaign asks for that."""
        return False

    @property
    def pack_key(self) -> str | None:
        """Long tasks with the same key may be done together by one worker, at less than what they take one by one."""
        return None

    @property
    def label(self) -> str:
        """The name of its method in tables."""
        return self.model.label if self.model else ""

    @property
    def method(self) -> str:
        """The method's own name, of which there are few: a tag of metrics."""
        return self.model.method if self.model else "none"

    @property
    def resident(self) -> str | None:
        """The id of the model that its worker holds afterwards; None: the base as it was loaded."""
        return self.model.id if self.model else None

    @property
    def stage(self) -> str:
        """What is said of a failure: at what it happened."""
        return self.kind

    def describe(self) -> str:
        """In a few words: `training esd: cat`."""
        return f"{self.kind} {self.model.describe()}" if self.model else self.kind

    def failure_message(self, reason: str) -> str:
        """Why a run cannot go on without it, for a task of no model."""
        return f"{self.describe()} failed, and nothing can be done without it: {reason}"

    def time_limit(self, limits: Limits) -> float | None:
        """Seconds that it may take; None: any."""
        return None

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        """By what rates its cost is estimated. Its seconds are the sum of those that the rates know."""
        return (RateUse("seconds_per_task", self.kind, 1),)

    def counted_cost(self, plan: Plan) -> CountedCost | None:
        """Its cost where rates do not know it; None: it cannot be counted."""
        return None

    @property
    def folder(self) -> str:
        """Where record and outputs lie, relative to the run folder."""
        return f"{self.kind}/{self.model.folder}" if self.model else self.kind

    @property
    def stem(self) -> str:
        """The beginning of the names of its files there: the record is `<stem>.json`, an output `<stem>.<name>`."""
        return self.id

    @property
    def log(self) -> str | None:
        """The name of the file there that keeps what it printed, also while it runs; None: nothing is kept."""
        return None


class DamagedInput(Exception):
    """A file that a task builds on is not what was once written: whatever made it has to be done again first."""

    def __init__(self, path: Path, record: Path) -> None:
        """record: of the task that wrote the file."""
        super().__init__(f"{path}: is not as it was written")
        self.record = record
