"""Fake workers on a clock of their own: how long everything takes, and how it ends, is up to the test."""

from collections import Counter
from collections.abc import Callable, Iterator

from efface.cluster.campaign.plan import Plan
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task

DONE = Outcome.done()


class TimedExecutor:
    """An executor. `takes` and `fate` are given the task and which attempt at it this is: 1, 2, …

    What a driver must never do is checked as it happens: that nothing begins before what it needs is there.
    """

    process_groups = None

    def __init__(
        self,
        plan: Plan,
        workers: int,
        takes: Callable[[Task, int], float] = lambda task, attempt: 1.0,
        fate: Callable[[Task, int], Outcome] = lambda task, attempt: DONE,
        depth: int = 2,
        replaceable: bool = True,
    ) -> None:
        self.workers, self.depth = workers, depth
        self.now = 0.0
        self.begun: list[tuple[float, int, Task]] = []
        """When, by which worker, what was handed out."""
        self.done: list[str] = []
        self.replaced: list[tuple[float, int]] = []
        self.tries: Counter[str] = Counter()
        self._takes, self._fate, self._replaceable = takes, fate, replaceable
        self._lines: list[list[tuple[Task, int]]] = [[] for _ in range(workers)]
        self._since = [0.0] * workers
        self._new_workers = list(range(workers))
        self._products = set(plan.products)

    def new_workers(self) -> list[int]:
        new_workers, self._new_workers = self._new_workers, []
        return new_workers

    def submit(self, worker: int, task: Task) -> None:
        line = self._lines[worker]
        assert len(line) < self.depth
        assert not line or all(isinstance(other, Shard) for other in (task, *(other for other, _ in line)))
        assert self._products.issuperset(task.requires)
        self.tries[task.id] += 1
        if not line:
            self._since[worker] = self.now
        line.append((task, self.tries[task.id]))
        self.begun.append((self.now, worker, task))

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        ends = [
            (self._since[worker] + self._takes(*line[0]), worker) for worker, line in enumerate(self._lines) if line
        ]
        end, worker = min(ends, default=(float("inf"), 0))
        if end > self.now + timeout:
            self.now += timeout
            return
        self.now = self._since[worker] = end
        task, attempt = self._lines[worker].pop(0)
        outcome = self._fate(task, attempt)
        if outcome.is_done:
            self.done.append(task.id)
            if task.provides:
                self._products.add(task.provides)
        if not outcome.worker_gone:
            yield worker, task, outcome
            return
        waiting, self._lines[worker] = self._lines[worker], []
        self._new_workers.append(worker)
        for gone in (task, *(other for other, _ in waiting)):
            yield worker, gone, outcome

    def speed(self, worker: int) -> float:
        return 1.0

    def replace(self, worker: int) -> bool:
        if self._replaceable:
            self.replaced.append((self.now, worker))
            self._lines[worker].clear()
            self._new_workers.append(worker)
        return self._replaceable

    def clock(self) -> float:
        return self.now

    def close(self) -> None:
        pass


class RecordingCallback:
    """A callback that writes everything down."""

    def __init__(self) -> None:
        self.ended_: list[tuple[str, str, bool]] = []
        """Id, state, and whether it is tried again."""

    def started(self, worker: int, task: Task) -> None:
        pass

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        self.ended_.append((task.id, outcome.state, will_retry))

    def tick(self) -> None:
        pass

    def of(self, task: Task) -> list[tuple[str, bool]]:
        """How the attempts at one task ended."""
        return [(state, will_retry) for name, state, will_retry in self.ended_ if name == task.id]


def all_tasks(plan: Plan) -> list[str]:
    """The ids of all tasks of a plan."""
    return sorted(task.id for task in plan.tasks)
