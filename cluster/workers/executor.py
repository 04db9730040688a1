"""What an executor is: numbered workers that are given tasks, and say how each ended."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task


class Ready(NamedTuple):
    """A worker that has everything loaded."""

    node: str
    """A name of its node."""
    speed: float = 1.0
    """10^12 operations a second in a large matrix product, on a GPU; else 1."""


class TaskWorker(Protocol):
    """What does the tasks: a `Worker`, or a test's replacement."""

    def ready(self) -> Ready:
        """Answers once everything is loaded."""

    def run(self, task: Task) -> Outcome:
        """Do a task. Never raises."""

    def run_pack(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Do tasks of one `pack_key` together. Never raises."""


WorkerClass = Callable[..., TaskWorker]
"""Called with a `WorkerContext`, and in this process with a function that says when to stop."""


class Executor(Protocol):
    """Numbered workers, each of which takes up to `depth` tasks at a time."""

    workers: int
    """How many there are; there may come to be more."""
    depth: int
    process_groups: "ProcessGroups | None"
    """How several workers do a task together; None: one does."""

    def new_workers(self) -> list[int]:
        """Workers that can take tasks since now: at the beginning, and again where another replaced one."""

    def speed(self, worker: int) -> float:
        """How fast a worker is that has come up; only ratios of two mean anything."""

    def submit(self, worker: int, task: Task) -> None:
        """Give a task to a worker; returns at once, or when the task is done."""

    def submit_pack(self, worker: int, tasks: Sequence[Task]) -> None:
        """Give a worker several tasks, of one `pack_key`, to be done together. Each has an outcome of its own."""

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        """What has ended, waiting up to `timeout` seconds for something to end."""

    def replace(self, worker: int) -> bool:
        """Stop a worker at once, whatever it does, and start another instead; False where that cannot be done."""

    def clock(self) -> float:
        """Seconds, from any start, by the clock that tasks are timed by."""

    def close(self) -> None:
        """Let go of the workers."""


class ProcessGroups(Protocol):
    """What an executor does that has several workers do a task together."""

    def select_workers(self, idle: Sequence[int]) -> list[int] | None:
        """Of the workers that have nothing to do, those that should do a task together; None: not yet."""

    def submit_job(self, workers: Sequence[int], task: Task) -> None:
        """Give a task to a process group that replaces several workers. It ends as the first one's, and all are gone
        then."""
