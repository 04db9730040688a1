"""The driver's loop: keep every worker busy, note what ended, try again what broke, give up what breaks twice."""

import statistics
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from efface.cluster.campaign import Limits
from efface.cluster.executors import Executor
from efface.cluster.plan import Calibration, Model, Plan, Shard
from efface.cluster.queue import Queue
from efface.cluster.run_folder import RunFolder, Work
from efface.cluster.worker import Outcome
from efface.errors import JobFailure, Stopped, StorageError, UserError

ATTEMPTS = 2
"""How often a piece of work may break before it is given up."""

LOSSES = 8
"""How often a piece of work may be lost with its worker, or with that worker's node, before it is given up."""

STRAGGLER = 3.0
"""A shard that takes so many times as long as most do is begun a second time, where a worker has nothing to do."""

KNOWN_SHARDS = 5
"""Shards that must have ended before it is known how long most take."""

LOOK = 0.5
"""Seconds between two looks at limits, stragglers and wishes to stop, while nothing ends."""


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
    blocked: list[Model] = field(default_factory=list)
    """Jobs that continue a failed one; no remaining work either."""

    @property
    def nothing(self) -> bool:
        return not self.calibrations and not self.jobs and not self.shards


def remaining(plan: Plan, folder: RunFolder) -> Remaining:
    """What is missing, from the records alone."""
    trials = folder.records(plan.calibrations)
    made = folder.records(plan.jobs)
    failures = folder.failures(plan.models)
    left = Remaining([trial for trial in plan.calibrations if trial.id not in trials])
    hopeless: set[str | None] = set()
    for model in plan.models:
        if model.id in failures:
            left.failed.append(model)
            if model.id not in made:
                hopeless.add(model.folder)
            continue
        if model.job is None or model.id in made:
            left.existing.append(model.id)
        elif model.after in hopeless:
            left.blocked.append(model)
            hopeless.add(model.folder)
            continue
        else:
            left.jobs.append(model)
        judged = folder.records(plan.shards[model.id])
        left.shards += [shard for shard in plan.shards[model.id] if shard.id not in judged]
    return left


def dispatch(
    left: Remaining,
    folder: Failures,
    executor: Executor,
    watchers: Sequence[Watcher],
    limits: Limits | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Do all the remaining work. What cannot be done is noted in the folder; the rest goes on.

    Raises Stopped once `stopping` is true and what was begun has ended; StorageError where results can be kept no more;
    UserError or JobFailure where a judge cannot be calibrated, or no worker comes up.
    """
    Dispatch(left, folder, executor, watchers, limits or Limits(), stopping).run()


@dataclass
class Slot:
    """A worker as the driver sees it."""

    doing: list[Work] = field(default_factory=list)
    """What it was given, in the order it does it."""
    since: float = 0.0
    """When it began the first of them."""
    held: str | None = None
    """The id of the model that it holds after what it was given; None: the base itself."""


class Dispatch:
    """One run of the loop."""

    def __init__(
        self,
        left: Remaining,
        folder: Failures,
        executor: Executor,
        watchers: Sequence[Watcher],
        limits: Limits,
        stopping: Callable[[], bool],
    ) -> None:
        self._queue = Queue(left.calibrations, left.jobs, left.shards, left.existing, executor.workers)
        self._folder, self._executor, self._watchers = folder, executor, watchers
        self._limits, self._asked_to_stop = limits, stopping
        self._slots = [Slot() for _ in range(executor.workers)]
        self._idle: deque[int] = deque()
        self._open_to_more: set[int] = set()
        """Workers that have just ended something, and might take a second piece."""
        self._gathering: Model | None = None
        """The job for which a gang is coming together."""
        self._copies: Counter[str] = Counter()
        """How many workers do a piece of work, by its id; work that is settled is not in it."""
        self._broken: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._helped: set[str] = set()
        """Straggling shards that were begun a second time."""
        self._pace: list[float] = []
        """Seconds an image of shards that ended."""
        self._stopping = False
        self._storage: str | None = None
        self._looked = executor.clock()

    def run(self) -> None:
        while True:
            self._welcome()
            if not self._stopping:
                self._feed()
            if not self._copies:
                if self._stopping or not (self._gathering or len(self._queue)):
                    break
                assert self._gathering or not self._idle, "work is left that nobody can begin"
            for worker, work, outcome in self._executor.outcomes(timeout=LOOK):
                self._end(worker, work, outcome)
            if self._executor.clock() - self._looked >= LOOK:
                self._look()
            for watcher in self._watchers:
                watcher.tick()
        if self._storage:
            raise StorageError(self._storage)
        if self._stopping:
            raise Stopped("laid down; what is finished is kept, the same command goes on from there")

    def _welcome(self) -> None:
        """New workers have nothing to do. There may come more than there were at first."""
        for worker in self._executor.arrived():
            self._slots += [Slot() for _ in range(len(self._slots), self._executor.workers)]
            self._slots[worker] = Slot()
            self._idle.append(worker)
        self._queue.workers = self._executor.workers

    def _feed(self) -> None:
        """Give work to whoever can take more. A second piece is always a shard, and never waits behind a job.

        Workers that have nothing to do stay in `_idle`. Of the others, only those that ended something are looked at,
        so that a cluster of thousands costs no more for each piece than one of ten.
        """
        open_to_more = sorted(self._open_to_more)
        self._open_to_more.clear()
        while self._idle and (first := self._gathering or self._queue.take(self._slots[self._idle[0]].held)):
            gangs = self._executor.gangs
            if gangs and isinstance(first, Model) and not first.solved:
                workers = gangs.gather(self._idle)
                if workers is None:
                    self._gathering = first
                    return  # whoever ends something from now on waits for the others
                self._gathering = None
                for worker in workers:
                    self._idle.remove(worker)
                self._begin(workers[0], first)
                gangs.submit_job(workers, first)
            else:
                worker = self._idle.popleft()
                self._give(worker, first)
                open_to_more.append(worker)
        for place in range(1, self._executor.depth):
            for worker in open_to_more:
                slot = self._slots[worker]
                if len(slot.doing) == place and all(isinstance(work, Shard) for work in slot.doing):
                    second = self._queue.take(slot.held, shards_only=True)
                    if second:
                        self._give(worker, second)

    def _give(self, worker: int, work: Work) -> None:
        self._begin(worker, work)
        self._executor.submit(worker, work)

    def _begin(self, worker: int, work: Work) -> None:
        slot = self._slots[worker]
        if not slot.doing:
            slot.since = self._executor.clock()
        slot.doing.append(work)
        slot.held = _model_of(work)
        self._copies[work.id] += 1
        for watcher in self._watchers:
            watcher.started(worker, work)

    def _end(self, worker: int, work: Work, outcome: Outcome) -> None:
        """A worker is done with a piece of work, in whatever way."""
        slot, now = self._slots[worker], self._executor.clock()
        if work not in slot.doing:
            return  # it was broken off before
        slot.doing.remove(work)
        if outcome.state == "done" and isinstance(work, Shard):
            self._pace.append((now - slot.since) / _size(work))
        slot.since = now
        if work.id in self._copies:
            self._copies[work.id] -= 1
            self._conclude(worker, work, outcome)
        else:
            self._tell(worker, work, Outcome("spare", "another worker was faster"))
        if outcome.worker_gone:
            slot.held = None
            return  # `arrived` tells when another is in its place
        if slot.doing:
            self._open_to_more.add(worker)
        else:
            # In front of those that had nothing to do before: such a worker holds the model that it made just now.
            self._idle.appendleft(worker)

    def _conclude(self, worker: int, work: Work, outcome: Outcome) -> None:
        """What the end of one copy of a piece of work means for it."""
        others = self._copies[work.id]
        if outcome.state == "stopped":
            self._stopping = True  # the worker heard of it first
        if outcome.state == "storage":
            self._stopping, self._storage = True, outcome.reason
        again = False
        if outcome.state == "fault":
            self._broken[work.id] += 1
            again = self._broken[work.id] < ATTEMPTS
        elif outcome.state == "lost":
            self._lost[work.id] += 1
            again = self._lost[work.id] < LOSSES
        elif outcome.state == "damaged":
            again = True  # once the job was done again, for which there is another round
        if outcome.state == "done" or not others:
            del self._copies[work.id]
        self._tell(worker, work, outcome, again)
        if outcome.state == "damaged":
            if not others and not isinstance(work, Calibration):
                self._queue.drop(work.model if isinstance(work, Shard) else work)
        elif again and not others:
            self._queue.put_back(work)
        elif outcome.state == "done" or (outcome.state not in ("stopped", "storage") and not again and not others):
            self._settle(work, outcome)

    def _tell(self, worker: int, work: Work, outcome: Outcome, again: bool = False) -> None:
        for watcher in self._watchers:
            watcher.ended(worker, work, outcome, again)

    def _settle(self, work: Work, outcome: Outcome) -> None:
        """Note what is done or given up."""
        if outcome.state == "done":
            if isinstance(work, Calibration):
                self._queue.calibrated()
            elif isinstance(work, Model):
                self._queue.exists(work)
            return
        if isinstance(work, Calibration):
            error = UserError if outcome.state == "failed" else JobFailure
            raise error(f"judge '{work.judge}' cannot be calibrated, so nothing can be judged: {outcome.reason}")
        self._folder.fail(work, outcome.reason, outcome.details)
        self._queue.drop(work if isinstance(work, Model) else work.model)

    def _look(self) -> None:
        """Now and then: is it time to stop, does something take too long, is a worker free to help?"""
        self._looked = now = self._executor.clock()
        self._stopping = self._stopping or self._asked_to_stop()
        for worker, slot in enumerate(self._slots):
            limit = _limit(self._limits, slot.doing[0]) if slot.doing else None
            if limit is not None and now - slot.since > limit and self._executor.replace(worker):
                self._break_off(worker, slot, limit)
        if self._idle and not self._stopping and len(self._pace) >= KNOWN_SHARDS:
            self._help(now)

    def _break_off(self, worker: int, slot: Slot, limit: float) -> None:
        late, *waiting = slot.doing
        late_outcome = Outcome("fault", f"ran past its time limit of {limit:g} s", worker_gone=True)
        lost = Outcome("lost", "its worker was stopped", worker_gone=True)
        for work, outcome in ((late, late_outcome), *((work, lost) for work in waiting)):
            self._end(worker, work, outcome)

    def _help(self, now: float) -> None:
        """Begin a straggling shard again on a worker that has nothing to do; the first to end counts."""
        usual = statistics.median(self._pace[-1000:])
        for slot in self._slots:
            for place, work in enumerate(slot.doing, 1):
                late = isinstance(work, Shard) and now - slot.since > STRAGGLER * place * usual * _size(work)
                if late and self._idle and self._copies.get(work.id) == 1 and work.id not in self._helped:
                    self._helped.add(work.id)
                    self._give(self._idle.popleft(), work)


def _size(shard: Shard) -> int:
    return max(1, len(shard.questions))


def _limit(limits: Limits, work: Work) -> float | None:
    """Seconds that a piece of work may take; None: any."""
    if isinstance(work, Shard):
        return limits.shard_seconds
    return limits.job_seconds if isinstance(work, Model) else None


def _model_of(work: Work) -> str | None:
    """The id of the model that a worker holds after this work; None: the base itself."""
    if isinstance(work, Shard):
        return work.model.id
    return work.id if isinstance(work, Model) else None
