"""The driver's loop: keep every worker busy, note what ended, try again what broke, give up what breaks twice."""

import statistics
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from efface.cluster.campaign.plan import CalibrationTask, Model, Plan, Shard
from efface.cluster.campaign.spec import Limits
from efface.cluster.scheduler.queue import Queue
from efface.cluster.storage.run_folder import RunFolder, Task
from efface.cluster.workers.executor import Executor
from efface.cluster.workers.worker import Outcome
from efface.errors import JobFailure, Stopped, StorageError, UserError

MAX_ATTEMPTS = 2
"""How often a piece of work may break before it is given up."""

MAX_WORKER_LOSSES = 8
"""How often a piece of work may be lost with its worker, or with that worker's node, before it is given up."""

STRAGGLER_FACTOR = 3.0
"""A shard that takes so many times as long as most do is begun a second time, where a worker has nothing to do."""

STRAGGLER_MIN_SHARDS = 5
"""Shards that must have ended before it is known how long most take."""

POLL_INTERVAL = 0.5
"""Seconds between two looks at limits, stragglers and wishes to stop, while nothing ends."""


class FailureStore(Protocol):
    """Where it is kept what was given up: the run folder."""

    def fail(self, task: Model | Shard, reason: str, details: str) -> None: ...


class Callback(Protocol):
    """Somebody who wants to see it run."""

    def started(self, worker: int, task: Task) -> None: ...

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        """`will_retry`: it broke, and will be tried again."""

    def tick(self) -> None: ...


class TaskSource(Protocol):
    """Where more tasks come from while a run is under way: a search, which acts on what has ended."""

    def more(self, idle: int) -> "RemainingTasks":
        """Tasks that can be done now, each model in them without a predecessor. Called after every look at the workers.

        idle: workers that nothing queued can occupy; at least 1 where nothing is queued and nothing runs. An empty
        answer then ends the run.
        """


@dataclass
class RemainingTasks:
    """What a run folder still lacks of a plan."""

    calibrations: list[CalibrationTask] = field(default_factory=list)
    jobs: list[Model] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    existing: list[str] = field(default_factory=list)
    """Models that can be judged now."""
    failed: list[Model] = field(default_factory=list)
    """Jobs given up earlier; neither they nor their shards are remaining work."""
    blocked: list[Model] = field(default_factory=list)
    """Jobs that continue a failed one; no remaining work either."""

    @property
    def is_empty(self) -> bool:
        return not self.calibrations and not self.jobs and not self.shards


def remaining_tasks(plan: Plan, folder: RunFolder) -> RemainingTasks:
    """What is missing, from the records alone."""
    calibrations = folder.records(plan.calibrations)
    made = folder.records(plan.jobs)
    failures = folder.failures(plan.models)
    remaining = RemainingTasks([calibration for calibration in plan.calibrations if calibration.id not in calibrations])
    hopeless: set[str | None] = set()
    for model in plan.models:
        if model.id in failures:
            remaining.failed.append(model)
            if model.id not in made:
                hopeless.add(model.folder)
            continue
        if model.job is None or model.id in made:
            remaining.existing.append(model.id)
        elif model.predecessor in hopeless:
            remaining.blocked.append(model)
            hopeless.add(model.folder)
            continue
        else:
            remaining.jobs.append(model)
        judged = folder.records(plan.shards[model.id])
        remaining.shards += [shard for shard in plan.shards[model.id] if shard.id not in judged]
    return remaining


def dispatch(
    remaining: RemainingTasks,
    folder: FailureStore,
    executor: Executor,
    callbacks: Sequence[Callback],
    limits: Limits | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    source: TaskSource | None = None,
) -> None:
    """Do all the remaining work, and what `source` adds to it. What cannot be done is noted in the folder; the rest
    goes on.

    Raises Stopped once `should_stop` is true and what was begun has ended; StorageError where results can be kept no
    more; UserError or JobFailure where a judge cannot be calibrated, or no worker comes up.
    """
    Dispatcher(remaining, folder, executor, callbacks, limits or Limits(), should_stop, source).run()


@dataclass
class WorkerState:
    """A worker as the driver sees it."""

    assigned: list[Task] = field(default_factory=list)
    """What it was given, in the order it does it."""
    since: float = 0.0
    """When it began the first of them."""
    resident: str | None = None
    """The id of the model that it holds after what it was given; None: the base itself."""


class Dispatcher:
    """One run of the loop."""

    def __init__(
        self,
        remaining: RemainingTasks,
        folder: FailureStore,
        executor: Executor,
        callbacks: Sequence[Callback],
        limits: Limits,
        should_stop: Callable[[], bool],
        source: TaskSource | None = None,
    ) -> None:
        self._queue = Queue(
            remaining.calibrations, remaining.jobs, remaining.shards, remaining.existing, executor.workers
        )
        self._folder, self._executor, self._callbacks = folder, executor, callbacks
        self._limits, self._should_stop, self._source = limits, should_stop, source
        self._worker_states = [WorkerState() for _ in range(executor.workers)]
        self._idle: deque[int] = deque()
        self._accepting: set[int] = set()
        """Workers that have just ended something, and might take a second piece."""
        self._pending_job: Model | None = None
        """The job for which a gang is coming together."""
        self._copies: Counter[str] = Counter()
        """How many workers do a piece of work, by its id; work that is settled is not in it."""
        self._error_counts: Counter[str] = Counter()
        self._loss_counts: Counter[str] = Counter()
        self._speculated: set[str] = set()
        """Straggling shards that were begun a second time."""
        self._seconds_per_image: list[float] = []
        """Seconds an image of shards that ended."""
        self._stopping = False
        self._storage_error: str | None = None
        self._last_poll = executor.clock()

    def run(self) -> None:
        while True:
            self._add_workers()
            if not self._stopping:
                self._assign_tasks()
                self._add_tasks()
            if not self._copies:
                if self._stopping or not (self._pending_job or len(self._queue)):
                    break
                assert self._pending_job or not self._idle, "work is left that nobody can begin"
            for worker, task, outcome in self._executor.outcomes(timeout=POLL_INTERVAL):
                self._record_end(worker, task, outcome)
            if self._executor.clock() - self._last_poll >= POLL_INTERVAL:
                self._poll()
            for callback in self._callbacks:
                callback.tick()
        if self._storage_error:
            raise StorageError(self._storage_error)
        if self._stopping:
            raise Stopped("laid down; what is finished is kept, the same command goes on from there")

    def _add_workers(self) -> None:
        """New workers have nothing to do. There may come more than there were at first."""
        for worker in self._executor.new_workers():
            self._worker_states += [WorkerState() for _ in range(len(self._worker_states), self._executor.workers)]
            self._worker_states[worker] = WorkerState()
            self._idle.append(worker)
        self._queue.workers = self._executor.workers

    def _assign_tasks(self) -> None:
        """Give work to whoever can take more. A second piece is always a shard, and never waits behind a job.

        Workers that have nothing to do stay in `_idle`. Of the others, only those that ended something are looked at,
        so that a cluster of thousands costs no more for each piece than one of ten.
        """
        accepting = sorted(self._accepting)
        self._accepting.clear()
        while self._idle and (
            first := self._pending_job or self._queue.take(self._worker_states[self._idle[0]].resident)
        ):
            process_groups = self._executor.process_groups
            if process_groups and isinstance(first, Model) and not first.closed_form:
                workers = process_groups.select_workers(self._idle)
                if workers is None:
                    self._pending_job = first
                    return  # whoever ends something from now on waits for the others
                self._pending_job = None
                for worker in workers:
                    self._idle.remove(worker)
                self._record_start(workers[0], first)
                process_groups.submit_job(workers, first)
            else:
                worker = self._idle.popleft()
                self._submit(worker, first)
                accepting.append(worker)
        for position in range(1, self._executor.depth):
            for worker in accepting:
                worker_state = self._worker_states[worker]
                if len(worker_state.assigned) == position and all(
                    isinstance(task, Shard) for task in worker_state.assigned
                ):
                    second = self._queue.take(worker_state.resident, shards_only=True)
                    if second:
                        self._submit(worker, second)

    def _add_tasks(self) -> None:
        """Queue what the source has, and assign it."""
        if not self._source:
            return
        ended = not (self._copies or self._pending_job or len(self._queue))
        more = self._source.more(0 if self._pending_job else max(len(self._idle), int(ended)))
        if not more.is_empty:
            self._queue.add(more.calibrations, more.jobs, more.shards, more.existing)
            self._assign_tasks()

    def _submit(self, worker: int, task: Task) -> None:
        self._record_start(worker, task)
        self._executor.submit(worker, task)

    def _record_start(self, worker: int, task: Task) -> None:
        worker_state = self._worker_states[worker]
        if not worker_state.assigned:
            worker_state.since = self._executor.clock()
        worker_state.assigned.append(task)
        worker_state.resident = _model_of(task)
        self._copies[task.id] += 1
        for callback in self._callbacks:
            callback.started(worker, task)

    def _record_end(self, worker: int, task: Task, outcome: Outcome) -> None:
        """A worker is done with a piece of work, in whatever way."""
        worker_state, now = self._worker_states[worker], self._executor.clock()
        if task not in worker_state.assigned:
            return  # it was broken off before
        worker_state.assigned.remove(task)
        if outcome.state == "done" and isinstance(task, Shard):
            self._seconds_per_image.append((now - worker_state.since) / _size(task))
        worker_state.since = now
        if task.id in self._copies:
            self._copies[task.id] -= 1
            self._handle_outcome(worker, task, outcome)
        else:
            self._notify(worker, task, Outcome("superseded", "another worker was faster"))
        if outcome.worker_gone:
            worker_state.resident = None
            return  # `new_workers` tells when another is in its place
        if worker_state.assigned:
            self._accepting.add(worker)
        else:
            # In front of those that had nothing to do before: such a worker holds the model that it made just now.
            self._idle.appendleft(worker)

    def _handle_outcome(self, worker: int, task: Task, outcome: Outcome) -> None:
        """What the end of one copy of a piece of work means for it."""
        others = self._copies[task.id]
        if outcome.state == "stopped":
            self._stopping = True  # the worker heard of it first
        if outcome.state == "storage":
            self._stopping, self._storage_error = True, outcome.reason
        will_retry = False
        if outcome.state == "error":
            self._error_counts[task.id] += 1
            will_retry = self._error_counts[task.id] < MAX_ATTEMPTS
        elif outcome.state == "worker_lost":
            self._loss_counts[task.id] += 1
            will_retry = self._loss_counts[task.id] < MAX_WORKER_LOSSES
        elif outcome.state == "damaged":
            will_retry = True  # once the job was done again, for which there is another round
        if outcome.state == "done" or not others:
            del self._copies[task.id]
        self._notify(worker, task, outcome, will_retry)
        if outcome.state == "damaged":
            if not others and not isinstance(task, CalibrationTask):
                self._queue.drop(task.model if isinstance(task, Shard) else task)
        elif will_retry and not others:
            self._queue.requeue(task)
        elif outcome.state == "done" or (outcome.state not in ("stopped", "storage") and not will_retry and not others):
            self._finalize(task, outcome)

    def _notify(self, worker: int, task: Task, outcome: Outcome, will_retry: bool = False) -> None:
        for callback in self._callbacks:
            callback.ended(worker, task, outcome, will_retry)

    def _finalize(self, task: Task, outcome: Outcome) -> None:
        """Note what is done or given up."""
        if outcome.state == "done":
            if isinstance(task, CalibrationTask):
                self._queue.judge_calibrated()
            elif isinstance(task, Model):
                self._queue.model_made(task)
            return
        if isinstance(task, CalibrationTask):
            error = UserError if outcome.state == "failed" else JobFailure
            raise error(f"judge '{task.judge}' cannot be calibrated, so nothing can be judged: {outcome.reason}")
        self._folder.fail(task, outcome.reason, outcome.details)
        self._queue.drop(task if isinstance(task, Model) else task.model)

    def _poll(self) -> None:
        """Now and then: is it time to stop, does something take too long, is a worker free to help?"""
        self._last_poll = now = self._executor.clock()
        self._stopping = self._stopping or self._should_stop()
        for worker, worker_state in enumerate(self._worker_states):
            limit = _limit(self._limits, worker_state.assigned[0]) if worker_state.assigned else None
            if limit is not None and now - worker_state.since > limit and self._executor.replace(worker):
                self._time_out(worker, worker_state, limit)
        if self._idle and not self._stopping and len(self._seconds_per_image) >= STRAGGLER_MIN_SHARDS:
            self._speculate(now)

    def _time_out(self, worker: int, worker_state: WorkerState, limit: float) -> None:
        late, *waiting = worker_state.assigned
        late_outcome = Outcome("error", f"ran past its time limit of {limit:g} s", worker_gone=True)
        worker_lost = Outcome("worker_lost", "its worker was stopped", worker_gone=True)
        for task, outcome in ((late, late_outcome), *((task, worker_lost) for task in waiting)):
            self._record_end(worker, task, outcome)

    def _speculate(self, now: float) -> None:
        """Begin a straggling shard again on a worker that has nothing to do; the first to end counts."""
        usual = statistics.median(self._seconds_per_image[-1000:])
        for worker_state in self._worker_states:
            for position, task in enumerate(worker_state.assigned, 1):
                late = isinstance(
                    task, Shard
                ) and now - worker_state.since > STRAGGLER_FACTOR * position * usual * _size(task)
                if late and self._idle and self._copies.get(task.id) == 1 and task.id not in self._speculated:
                    self._speculated.add(task.id)
                    self._submit(self._idle.popleft(), task)


def _size(shard: Shard) -> int:
    return max(1, len(shard.eval_requests))


def _limit(limits: Limits, task: Task) -> float | None:
    """Seconds that a piece of work may take; None: any."""
    if isinstance(task, Shard):
        return limits.shard_seconds
    return limits.job_seconds if isinstance(task, Model) else None


def _model_of(task: Task) -> str | None:
    """The id of the model that a worker holds after this work; None: the base itself."""
    if isinstance(task, Shard):
        return task.model.id
    return task.id if isinstance(task, Model) else None
