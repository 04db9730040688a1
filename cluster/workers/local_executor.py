"""One worker in this process."""

import time
from collections.abc import Callable, Iterator, Sequence

from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.workers.executor import ProcessGroups, WorkerClass
from efface.cluster.workers.worker import Worker, WorkerContext


class LocalExecutor:
    """One worker in this process: no Ray, easy to debug."""

    workers = 1
    depth = 1
    process_groups: ProcessGroups | None = None

    def __init__(self, context: WorkerContext, should_stop: Callable[[], bool], worker: WorkerClass = Worker) -> None:
        self._worker = worker(context, should_stop)
        self._new_workers = [0]
        self._finished: list[tuple[int, Task, Outcome]] = []

    def new_workers(self) -> list[int]:
        new_workers, self._new_workers = self._new_workers, []
        return new_workers

    def speed(self, worker: int) -> float:
        return 1.0

    def submit(self, worker: int, task: Task) -> None:
        self._finished.append((worker, task, self._worker.run(task)))

    def submit_pack(self, worker: int, tasks: Sequence[Task]) -> None:
        outcomes = self._worker.run_pack(tasks)
        self._finished += [(worker, task, outcome) for task, outcome in zip(tasks, outcomes, strict=True)]

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        ended, self._finished = self._finished, []
        yield from ended

    def replace(self, worker: int) -> bool:
        return False

    def clock(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        pass
