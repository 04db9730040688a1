"""The driver's loop: keep every worker busy, note what ended, try again what broke, give up what breaks twice."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Protocol

from efface.cluster.executors import Executor
from efface.cluster.plan import Calibration, Model, Plan, Shard
from efface.cluster.queue import Queue
from efface.cluster.run_folder import RunFolder, Work
from efface.cluster.worker import Outcome
from efface.errors import JobFailure, UserError

ATTEMPTS = 2
"""How often a piece of work may break before it is given up."""


class Failures(Protocol):
    """Where it is kept what was given up: the run folder."""

    def fail(self, work: Model | Shard, reason: str, details: str) -> None: ...


class Watcher(Protocol):
    """Somebody who wants to see it run."""

    def started(self, worker: int, work: Work) -> None: ...

    def ended(self, worker: int, work: Work, outcome: Outcome, again: bool) -> None:
        """`again`: it broke, and will be tried again."""

    def tick(self) -> None: ...


@dataclass
class Remaining:
    """What a run folder still lacks of a plan."""

    calibrations: list[Calibration] = field(default_factory=list)
    jobs: list[Model] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    existing: list[str] = field(default_factory=list)
    """Models that can be judged now."""
    failed: list[Model] = field(default_factory=list)
    """Jobs given up earlier; neither they nor their shards are remaining work."""

    @property
    def nothing(self) -> bool:
        return not self.calibrations and not self.jobs and not self.shards


def remaining(plan: Plan, folder: RunFolder) -> Remaining:
    """What is missing, from the records alone."""
    left = Remaining([trial for trial in plan.calibrations if not folder.record(trial)])
    for model in plan.models:
        if folder.failure(model):
            left.failed.append(model)
            continue
        if model.job is None or folder.record(model):
            left.existing.append(model.id)
        else:
            left.jobs.append(model)
        left.shards += [shard for shard in plan.shards[model.id] if not folder.record(shard)]
    return left


def dispatch(left: Remaining, folder: Failures, executor: Executor, watcher: Watcher) -> None:
    """Do all the remaining work. What cannot be done is noted in the folder; the rest goes on."""
    queue = Queue(left.calibrations, left.jobs, left.shards, left.existing, executor.workers)
    busy: list[list[Work]] = [[] for _ in range(executor.workers)]
    held: list[str | None] = [None] * executor.workers
    broken: Counter[str] = Counter()
    idle, ended = deque(range(executor.workers)), set[int]()
    while True:
        _feed(queue, executor, busy, held, idle, ended, watcher)
        if len(idle) == executor.workers:
            return
        ended.clear()
        for worker, work, outcome in executor.outcomes(timeout=0.5):
            busy[worker].remove(work)
            ended.add(worker)
            again = outcome.state == "fault" and broken[work.id] + 1 < ATTEMPTS
            watcher.ended(worker, work, outcome, again)
            if again:
                broken[work.id] += 1
                queue.put_back(work)
            else:
                _settle(work, outcome, queue, folder)
        # In front of those that had nothing to do before: such a worker holds the model that it made just now.
        free = [worker for worker in sorted(ended) if not busy[worker]]
        idle.extendleft(reversed(free))
        ended.difference_update(free)
        watcher.tick()


def _feed(
    queue: Queue,
    executor: Executor,
    busy: list[list[Work]],
    held: list[str | None],
    idle: deque[int],
    ended: set[int],
    watcher: Watcher,
) -> None:
    """Give work to whoever can take more. A second piece is always a shard, and never waits behind a job.

    Workers that keep nothing to do stay in `idle`. Of the others, only those that `ended` something are looked at, so
    that a cluster of thousands costs no more for each piece than one of ten.
    """

    def give(worker: int, work: Work) -> None:
        busy[worker].append(work)
        held[worker] = _model_of(work)
        watcher.started(worker, work)
        executor.submit(worker, work)

    open_to_more = sorted(ended)
    while idle and (first := queue.take(held[idle[0]])):
        worker = idle.popleft()
        give(worker, first)
        open_to_more.append(worker)
    for place in range(1, executor.depth):
        for worker in open_to_more:
            if len(busy[worker]) == place and all(isinstance(work, Shard) for work in busy[worker]):
                second = queue.take(held[worker], shards_only=True)
                if second:
                    give(worker, second)


def _settle(work: Work, outcome: Outcome, queue: Queue, folder: Failures) -> None:
    """Note what is done or given up. Raises UserError or JobFailure where nothing could go on without it."""
    if outcome.state == "done":
        if isinstance(work, Calibration):
            queue.calibrated()
        elif isinstance(work, Model):
            queue.exists(work)
        return
    if isinstance(work, Calibration):
        error = UserError if outcome.state == "failed" else JobFailure
        raise error(f"judge '{work.judge}' cannot be calibrated, so nothing can be judged: {outcome.reason}")
    folder.fail(work, outcome.reason, outcome.details)
    queue.drop(work if isinstance(work, Model) else work.model)


def _model_of(work: Work) -> str | None:
    """The id of the model that a worker holds after this work; None: the base itself."""
    if isinstance(work, Shard):
        return work.model.id
    return work.id if isinstance(work, Model) else None
