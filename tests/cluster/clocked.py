"""Workers that only pretend, on a clock of their own: how long everything takes, and how it ends, is up to the test."""

from collections import Counter
from collections.abc import Callable, Iterator

from efface.cluster.plan import Calibration, Model, Plan, Shard
from efface.cluster.run_folder import Work
from efface.cluster.worker import Outcome

DONE = Outcome("done")


class Clocked:
    """An executor. `takes` and `fate` are told the work and which try at it this is: 1, 2, …

    What a driver must never do is checked as it happens: that nothing begins before what it needs is there.
    """

    gangs = None

    def __init__(
        self,
        plan: Plan,
        workers: int,
        takes: Callable[[Work, int], float] = lambda work, attempt: 1.0,
        fate: Callable[[Work, int], Outcome] = lambda work, attempt: DONE,
        depth: int = 2,
        replaceable: bool = True,
    ) -> None:
        self.workers, self.depth = workers, depth
        self.now = 0.0
        self.begun: list[tuple[float, int, Work]] = []
        """When, by which worker, what was handed out."""
        self.done: list[str] = []
        self.replaced: list[tuple[float, int]] = []
        self.tries: Counter[str] = Counter()
        self._takes, self._fate, self._replaceable = takes, fate, replaceable
        self._lines: list[list[tuple[Work, int]]] = [[] for _ in range(workers)]
        self._since = [0.0] * workers
        self._new = list(range(workers))
        self._existing = {plan.models[0].id: plan.models[0].folder}
        self._uncalibrated = {trial.id for trial in plan.calibrations}

    def arrived(self) -> list[int]:
        arrived, self._new = self._new, []
        return arrived

    def submit(self, worker: int, work: Work) -> None:
        line = self._lines[worker]
        assert len(line) < self.depth
        assert not line or all(isinstance(other, Shard) for other in (work, *(other for other, _ in line)))
        if isinstance(work, Shard):
            assert work.model.id in self._existing and not self._uncalibrated
        elif isinstance(work, Model) and work.after:
            assert work.after in self._existing.values()
        self.tries[work.id] += 1
        if not line:
            self._since[worker] = self.now
        line.append((work, self.tries[work.id]))
        self.begun.append((self.now, worker, work))

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Work, Outcome]]:
        ends = [
            (self._since[worker] + self._takes(*line[0]), worker) for worker, line in enumerate(self._lines) if line
        ]
        end, worker = min(ends, default=(float("inf"), 0))
        if end > self.now + timeout:
            self.now += timeout
            return
        self.now = self._since[worker] = end
        work, attempt = self._lines[worker].pop(0)
        outcome = self._fate(work, attempt)
        if outcome.state == "done":
            self.done.append(work.id)
            if isinstance(work, Model):
                self._existing[work.id] = work.folder
            elif isinstance(work, Calibration):
                self._uncalibrated.discard(work.id)
        if not outcome.worker_gone:
            yield worker, work, outcome
            return
        waiting, self._lines[worker] = self._lines[worker], []
        self._new.append(worker)
        for gone in (work, *(other for other, _ in waiting)):
            yield worker, gone, outcome

    def replace(self, worker: int) -> bool:
        if self._replaceable:
            self.replaced.append((self.now, worker))
            self._lines[worker].clear()
            self._new.append(worker)
        return self._replaceable

    def clock(self) -> float:
        return self.now

    def close(self) -> None:
        pass


class Notes:
    """A watcher that writes everything down."""

    def __init__(self) -> None:
        self.ended_: list[tuple[str, str, bool]] = []
        """Id, state, and whether it is tried again."""

    def started(self, worker: int, work: Work) -> None:
        pass

    def ended(self, worker: int, work: Work, outcome: Outcome, again: bool) -> None:
        self.ended_.append((work.id, outcome.state, again))

    def tick(self) -> None:
        pass

    def of(self, work: Work) -> list[tuple[str, bool]]:
        """What was heard of one piece of work."""
        return [(state, again) for name, state, again in self.ended_ if name == work.id]


def everything(plan: Plan) -> list[str]:
    """The ids of all work of a plan."""
    shards = [shard.id for shards in plan.shards.values() for shard in shards]
    return sorted([*(trial.id for trial in plan.calibrations), *(model.id for model in plan.jobs), *shards])
