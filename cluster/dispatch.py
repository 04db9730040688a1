"""The driver's loop: keep every worker busy, note what ended, try again what broke, give up what breaks twice."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from efface.cluster.executors import Executor
from efface.cluster.plan import Calibration, Model, Plan, Shard
from efface.cluster.queue import Queue
from efface.cluster.run_folder import RunFolder
from efface.cluster.worker import Outcome, Work
from efface.errors import JobFailure

ATTEMPTS = 2
"""How often a piece of work may break before it is given up."""


class Watcher(Protocol):
    """Somebody who wants to see it run."""

    def started(self, worker: int, work: Work) -> None: ...

    def ended(self, worker: int, work: Work, outcome: Outcome) -> None: ...

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
    left = Remaining([trial for trial in plan.calibrations if not folder.calibration(trial).is_file()])
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


def dispatch(left: Remaining, folder: RunFolder, executor: Executor, watcher: Watcher) -> None:
    """Do all the remaining work. What cannot be done is noted in the folder; the rest goes on."""
    queue = Queue(left.calibrations, left.jobs, left.shards, left.existing)
    busy: list[list[Work]] = [[] for _ in range(executor.workers)]
    held: list[str | None] = [None] * executor.workers
    broken: Counter[str] = Counter()
    while True:
        _feed(queue, executor, busy, held, watcher)
        if not any(busy):
            return
        for worker, work, outcome in executor.outcomes(timeout=0.5):
            busy[worker].remove(work)
            watcher.ended(worker, work, outcome)
            _settle(work, outcome, queue, folder, broken)
        watcher.tick()


def _feed(queue: Queue, executor: Executor, busy: list[list[Work]], held: list[str | None], watcher: Watcher) -> None:
    """Give work to whoever can take more. A second piece is always a shard, and never waits behind a job."""
    for place in range(executor.depth):
        for worker, doing in enumerate(busy):
            if len(doing) != place or not all(isinstance(work, Shard) for work in doing):
                continue
            work = queue.take(held[worker], shards_only=place > 0)
            if work is None:
                continue
            doing.append(work)
            held[worker] = _model_of(work)
            watcher.started(worker, work)
            executor.submit(worker, work)


def _settle(work: Work, outcome: Outcome, queue: Queue, folder: RunFolder, broken: Counter[str]) -> None:
    if outcome.state == "done":
        if isinstance(work, Calibration):
            queue.calibrated()
        elif isinstance(work, Model):
            queue.exists(work)
        return
    broken[work.id] += 1
    if outcome.state == "fault" and broken[work.id] < ATTEMPTS:
        queue.put_back(work)
        return
    if isinstance(work, Calibration):
        raise JobFailure(f"judge '{work.judge}' cannot be calibrated, so nothing can be judged: {outcome.reason}")
    folder.fail(work, outcome.reason, outcome.details)
    queue.drop(work if isinstance(work, Model) else work.model)


def _model_of(work: Work) -> str | None:
    """The id of the model that a worker holds after this work; None: the base itself."""
    if isinstance(work, Shard):
        return work.model.id
    return work.id if isinstance(work, Model) else None
