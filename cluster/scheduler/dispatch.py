"""The driver's loop: keep every worker busy, note what ended, and do what its outcome says (`tasks/retry_rules.py`)."""

import statistics
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from efface.cluster.campaign.spec import Limits
from efface.cluster.scheduler.queue import Queue
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.retry_rules import Attempts, Next, Outcome
from efface.cluster.tasks.task import Priority, Task
from efface.cluster.workers.executor import Executor
from efface.errors import JobFailure, Stopped, StorageError, UserError

STRAGGLER_FACTOR = 3.0
"""A short task that takes so many times as long as most of its kind is started again where a worker is idle."""

STRAGGLER_MIN_TASKS = 5
"""Tasks of a kind that must have ended before it is known how long most take."""

SPEED_STEPS = 5
"""So many speeds of workers are distinguished, from that of the fastest to none."""

POLL_INTERVAL = 0.5
"""Seconds between two looks at limits, stragglers and requests to stop, while nothing ends."""


class FailureStore(Protocol):
    """Where it is kept what was given up: the run folder."""

    def fail(self, model: Model, stage: str, reason: str, details: str) -> None: ...


class Callback(Protocol):
    """Somebody who wants to see it run."""

    def started(self, worker: int, task: Task) -> None: ...

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        """`will_retry`: it is going to be tried again."""

    def tick(self) -> None: ...


class TaskSource(Protocol):
    """Where more tasks come from while a run is under way: a search, which acts on what has ended."""

    def more(self, idle: int) -> "RemainingTasks":
        """Tasks that can be done now, those that provide before those that require. Called after every poll.

        idle: workers that nothing queued can occupy; at least 1 where nothing is queued and nothing runs. An empty
        answer then ends the run.
        """


def dispatch(
    remaining: RemainingTasks,
    folder: FailureStore,
    executor: Executor,
    callbacks: Sequence[Callback],
    limits: Limits | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    source: TaskSource | None = None,
    pack: int = 1,
) -> None:
    """Do all the remaining tasks, and what `source` adds to them. What cannot be done is noted in the folder; the rest
    goes on.

    pack: how many tasks of one `pack_key` a worker does together, at most.

    Raises Stopped once `should_stop` is true and the tasks under way have ended; StorageError where results can no
    longer be written; UserError or JobFailure where a task without a model fails, or no worker comes up.
    """
    Dispatcher(remaining, folder, executor, callbacks, limits or Limits(), should_stop, source, pack).run()


@dataclass
class WorkerState:
    """A worker as the driver sees it."""

    assigned: list[Task] = field(default_factory=list)
    """Its tasks, in the order it does them."""
    since: float = 0.0
    """When it began the first of them."""
    resident: str | None = None
    """The id of the model that it holds after them; None: the base itself."""
    packed: int = 1
    """How many of them it began together."""


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
        pack: int = 1,
    ) -> None:
        self._pack = pack
        self._alone: set[str] = set()
        """Tasks that went wrong in a pack, of which nobody knows whose doing it was: they are tried again alone."""
        self._queue = Queue(remaining.tasks, remaining.products, executor.workers)
        self._folder, self._executor, self._callbacks = folder, executor, callbacks
        self._limits, self._should_stop, self._source = limits, should_stop, source
        self._worker_states = [WorkerState() for _ in range(executor.workers)]
        self._idle: list[int] = []
        """The fastest first; of equally fast ones, first those that held something last."""
        self._fastest = 0.0
        self._accepting: set[int] = set()
        """Workers that have just ended something, and might take a second task."""
        self._pending: Task | None = None
        """The task for which a process group is being assembled."""
        self._copies: Counter[str] = Counter()
        """How many workers do a task, by its id; a task that is settled is not in it."""
        self._attempts = Attempts()
        self._speculated: set[str] = set()
        """Straggling tasks that were started a second time."""
        self._durations: dict[str, deque[float]] = {}
        """By kind, seconds a unit of the last tasks that ended."""
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
                if self._stopping or not (self._pending or len(self._queue)):
                    break
                assert self._pending or not self._idle, "tasks are left that no worker can start"
            for worker, task, outcome in self._executor.outcomes(timeout=POLL_INTERVAL):
                self._record_end(worker, task, outcome)
            if self._executor.clock() - self._last_poll >= POLL_INTERVAL:
                self._poll()
            for callback in self._callbacks:
                callback.tick()
        if self._storage_error:
            raise StorageError(self._storage_error)
        if self._stopping:
            raise Stopped("stopped; finished work is kept, the same command continues from there")

    def _add_workers(self) -> None:
        """New workers have nothing to do. There may come more than there were at first."""
        for worker in self._executor.new_workers():
            self._worker_states += [WorkerState() for _ in range(len(self._worker_states), self._executor.workers)]
            self._worker_states[worker] = WorkerState()
            self._fastest = max(self._fastest, self._executor.speed(worker))
            self._make_idle(worker)
        self._queue.workers = self._executor.workers

    def _make_idle(self, worker: int, first: bool = False) -> None:
        """A worker has nothing to do. It goes before others of its speed, or behind them."""
        bisect = bisect_left if first else bisect_right
        self._idle.insert(bisect(self._idle, self._slowness(worker), key=self._slowness), worker)

    def _slowness(self, worker: int) -> int:
        """0 of the fastest; speeds are in steps, as two equal GPUs are never measured quite the same."""
        return round(SPEED_STEPS * (1 - self._executor.speed(worker) / self._fastest))

    def _assign_tasks(self) -> None:
        """Give tasks to whoever can take more. A second one is always short, and never waits behind a long one.

        Workers that have nothing to do stay in `_idle`. Of the others, only those that ended something are looked at,
        so that a cluster of thousands costs no more for each task than one of ten.
        """
        accepting = sorted(self._accepting)
        self._accepting.clear()
        while self._idle and (first := self._pending or self._queue.take(self._worker_states[self._idle[0]].resident)):
            process_groups = self._executor.process_groups
            if process_groups and first.process_group:
                workers = process_groups.select_workers(self._idle)
                if workers is None:
                    self._pending = first
                    return  # whoever ends something from now on waits for the others
                self._pending = None
                for worker in workers:
                    self._idle.remove(worker)
                self._record_start(workers[0], first)
                process_groups.submit_job(workers, first)
            else:
                packed = self._packed_with(first)
                worker = self._idle.pop(0)
                self._submit(worker, first, *packed)
                accepting.append(worker)
        for position in range(1, self._executor.depth):
            for worker in accepting:
                worker_state = self._worker_states[worker]
                if len(worker_state.assigned) == position and all(
                    task.priority is Priority.FILL for task in worker_state.assigned
                ):
                    second = self._queue.take(worker_state.resident, prefetch=True)
                    if second:
                        self._submit(worker, second)

    def _add_tasks(self) -> None:
        """Queue what the source has, and assign it."""
        if not self._source:
            return
        ended = not (self._copies or self._pending or len(self._queue))
        more = self._source.more(0 if self._pending else max(len(self._idle), int(ended)))
        if more.tasks or more.products:
            self._queue.add(more.tasks, more.products)
            self._assign_tasks()

    def _packed_with(self, first: Task) -> list[Task]:
        """What the worker of a task should do together with it: its share of the long tasks, as far as they pack."""
        if self._pack == 1 or first.pack_key is None or first.id in self._alone:
            return []
        share = -(-(1 + self._queue.ready_long) // max(1, self._queue.workers))
        return self._queue.take_packed(first.pack_key, min(self._pack, share) - 1, self._alone)

    def _submit(self, worker: int, *tasks: Task) -> None:
        for task in tasks:
            self._record_start(worker, task)
        self._worker_states[worker].packed = len(tasks)
        if len(tasks) > 1:
            self._executor.submit_pack(worker, tasks)
        else:
            self._executor.submit(worker, *tasks)

    def _record_start(self, worker: int, task: Task) -> None:
        worker_state = self._worker_states[worker]
        if not worker_state.assigned:
            worker_state.since = self._executor.clock()
        worker_state.assigned.append(task)
        worker_state.resident = task.resident
        self._copies[task.id] += 1
        for callback in self._callbacks:
            callback.started(worker, task)

    def _record_end(self, worker: int, task: Task, outcome: Outcome) -> None:
        """A worker is done with a task, in whatever way."""
        worker_state, now = self._worker_states[worker], self._executor.clock()
        if task not in worker_state.assigned:
            return  # it was interrupted before
        worker_state.assigned.remove(task)
        if worker_state.packed > 1 and outcome.next is Next.RETRY:
            self._alone.add(task.id)
        if outcome.is_done and task.priority is Priority.FILL:
            durations = self._durations.setdefault(task.kind, deque(maxlen=1000))
            durations.append((now - worker_state.since) / task.size)
        worker_state.since = now
        if task.id in self._copies:
            self._copies[task.id] -= 1
            self._handle_outcome(worker, task, outcome)
        else:
            self._notify(worker, task, Outcome.superseded())
        if outcome.worker_gone:
            worker_state.resident = None
            return  # `new_workers` has it again when another has replaced it
        if worker_state.assigned:
            self._accepting.add(worker)
        else:
            # In front of those that had nothing to do before: such a worker holds the model that it made just now.
            self._make_idle(worker, first=True)

    def _handle_outcome(self, worker: int, task: Task, outcome: Outcome) -> None:
        """What the end of one copy of a task means for it."""
        others = self._copies[task.id]
        if outcome.next in (Next.STOP, Next.ABORT):
            self._stopping = True  # the worker heard of it first
        if outcome.next is Next.ABORT:
            self._storage_error = outcome.reason
        will_retry = self._attempts.will_retry(task, outcome)
        if outcome.is_done or not others:
            del self._copies[task.id]
        self._notify(worker, task, outcome, will_retry)
        if outcome.is_done:
            self._queue.done(task)
        elif others or outcome.next in (Next.STOP, Next.ABORT):
            return
        elif outcome.next is Next.REDO_INPUT:
            self._queue.drop(task)
        elif will_retry:
            self._queue.requeue(task)
        else:
            self._give_up(task, outcome)

    def _notify(self, worker: int, task: Task, outcome: Outcome, will_retry: bool = False) -> None:
        for callback in self._callbacks:
            callback.ended(worker, task, outcome, will_retry)

    def _give_up(self, task: Task, outcome: Outcome) -> None:
        """Note what cannot be done. Raises UserError or JobFailure where nothing can be done without it."""
        if task.model is None:
            error = UserError if outcome.next is Next.GIVE_UP else JobFailure
            raise error(task.failure_message(outcome.reason))
        self._folder.fail(task.model, task.stage, outcome.reason, outcome.details)
        self._queue.drop(task)

    def _poll(self) -> None:
        """Now and then: is it time to stop, does something take too long, is a worker free to help?"""
        self._last_poll = now = self._executor.clock()
        self._stopping = self._stopping or self._should_stop()
        for worker, worker_state in enumerate(self._worker_states):
            limit = worker_state.assigned[0].time_limit(self._limits) if worker_state.assigned else None
            limit = limit and limit * worker_state.packed
            if limit is not None and now - worker_state.since > limit and self._executor.replace(worker):
                self._time_out(worker, worker_state, limit)
        if self._idle and not self._stopping:
            self._speculate(now)

    def _time_out(self, worker: int, worker_state: WorkerState, limit: float) -> None:
        late, *waiting = worker_state.assigned
        reason = f"ran past its time limit of {limit:g} s"
        late_outcome = Outcome.error(reason, worker_gone=True)
        if worker_state.packed > 1:
            late_outcome = Outcome.worker_lost(f"its pack {reason}", worker_gone=True)
        worker_lost = Outcome.worker_lost("its worker was stopped", worker_gone=True)
        for task, outcome in ((late, late_outcome), *((task, worker_lost) for task in waiting)):
            self._record_end(worker, task, outcome)

    def _speculate(self, now: float) -> None:
        """Start straggling tasks again on workers that have nothing to do; the first to end counts."""
        usual = {
            kind: statistics.median(durations)
            for kind, durations in self._durations.items()
            if len(durations) >= STRAGGLER_MIN_TASKS
        }
        for worker_state in self._worker_states:
            for position, task in enumerate(worker_state.assigned, 1):
                if task.kind not in usual or task.priority is not Priority.FILL:
                    continue
                late = now - worker_state.since > STRAGGLER_FACTOR * position * usual[task.kind] * task.size
                if late and self._idle and self._copies.get(task.id) == 1 and task.id not in self._speculated:
                    self._speculated.add(task.id)
                    self._submit(self._idle.pop(0), task)
