"""A run in numbers, for Prometheus: custom metrics of Ray, which every Ray cluster exports already.

METRICS is the one list of them. `docs/monitoring.md` says how to look at them, and `cluster/deploy/grafana.json` is a
dashboard of exactly these. Tags are few and have few values: a run has thousands of jobs, and none has its own series.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from efface.cluster.campaign.plan import CalibrationTask, Model, Plan, Shard
from efface.cluster.scheduler.dispatch import RemainingTasks
from efface.cluster.storage.journal import TaskTimer
from efface.cluster.storage.run_folder import Task
from efface.cluster.workers.worker import Outcome

BUCKETS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0]
"""Upper bounds of the histograms' buckets."""

STATES = ("waiting", "running", "done", "failed")
Cause = Literal["worker lost", "out of memory", "error"]


@dataclass(frozen=True)
class Metric:
    """One metric as it is named here."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    tags: tuple[str, ...]
    help: str

    @property
    def exported(self) -> tuple[str, ...]:
        """The names of its series in Prometheus."""
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        return tuple(f"ray_{self.name}{end}" for end in ends[self.kind])


METRICS = (
    Metric("efface_jobs", "gauge", ("state",), "Jobs by state: waiting, running, done, failed"),
    Metric(
        "efface_shards",
        "gauge",
        ("state",),
        "Shards of images by state: waiting, running, done, failed (given up with their model)",
    ),
    Metric("efface_images", "counter", ("method",), "Images made and judged, by the method that made the model"),
    Metric("efface_task_seconds", "histogram", ("task", "method"), "Seconds that a finished piece of work took"),
    Metric(
        "efface_queue_wait_seconds",
        "histogram",
        ("task",),
        "Seconds from when a piece of work could be done until a worker was given it",
    ),
    Metric("efface_busy_fraction", "gauge", (), "Workers that have something to do, of all"),
    Metric(
        "efface_cache_hits",
        "gauge",
        ("kind",),
        "Work that was there already when the run started: calibration, job, base_shard, shard",
    ),
    Metric("efface_retries", "counter", ("cause",), "Work tried again: worker lost, out of memory, fault"),
    Metric(
        "efface_out_of_memory_smaller_batches",
        "counter",
        ("task",),
        "Work done in batches of half the size, for the memory did not suffice",
    ),
)


class Metrics:
    """A watcher that keeps the metrics up to date; where no Ray runs there is nobody to tell, and it does nothing."""

    def __init__(self, plan: Plan, remaining: RemainingTasks, workers: int) -> None:
        self._workers = workers
        self._meters = _meters()
        self._clock = TaskTimer()
        self._plan = plan
        self._states = {task.id: state for task, state in _states(plan, remaining)}
        jobs = {model.id for model in plan.jobs}
        self._jobs = Counter(state for id, state in self._states.items() if id in jobs)
        self._shards = Counter(state for id, state in self._states.items() if id not in jobs)
        self._followers: dict[str, list[Model]] = {}
        for model in plan.jobs:
            if model.predecessor:
                self._followers.setdefault(model.predecessor, []).append(model)
        self._start = self._calibrated = time.monotonic()
        self._made_at: dict[str, float] = {}
        """When a model came to be, by its folder; those not in it were there from the start."""
        self._requeued_at: dict[str, float] = {}
        """When a piece of work was given back, to be tried again."""
        self._hits = _hits(plan, remaining)
        self.tick()

    def started(self, worker: int, task: Task) -> None:
        self._workers = max(self._workers, worker + 1)
        if not self._clock.is_running(task):
            waited = time.monotonic() - self._runnable_since(task)
            self._observe("efface_queue_wait_seconds", waited, task=_kind(task))
        self._clock.started(worker, task)
        self._transition(task, "running")

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        seconds = self._clock.ended(worker, task)
        if outcome.state == "done":
            self._done(task, seconds, outcome.smaller_batch)
            return
        if will_retry:
            self._count("efface_retries", cause=cause_of(outcome))
        if outcome.state == "superseded" or self._clock.is_running(task):
            return  # another worker has done it, or has it still
        if will_retry or outcome.state in ("stopped", "storage"):
            self._requeued_at[task.id] = time.monotonic()
            self._transition(task, "waiting")
        else:
            self._give_up(task)

    def tick(self) -> None:
        """Ray exports a gauge once for each time it is set, so all of them are set again and again."""
        for state in STATES:
            self._set("efface_jobs", self._jobs[state], state=state)
            self._set("efface_shards", self._shards[state], state=state)
        self._set("efface_busy_fraction", self._clock.busy / self._workers)
        for kind, number in self._hits.items():
            self._set("efface_cache_hits", number, kind=kind)

    def _done(self, task: Task, seconds: float, smaller_batch: bool) -> None:
        self._transition(task, "done")
        self._observe("efface_task_seconds", seconds, task=_kind(task), method=_method(task))
        if smaller_batch:
            self._count("efface_out_of_memory_smaller_batches", task=_kind(task))
        if isinstance(task, Shard):
            self._count("efface_images", len(task.eval_requests), method=_method(task))
        elif isinstance(task, Model):
            self._made_at[task.folder] = time.monotonic()
        else:
            self._calibrated = time.monotonic()

    def _transition(self, task: Task, state: str) -> None:
        if isinstance(task, CalibrationTask):
            return
        counts = self._jobs if isinstance(task, Model) else self._shards
        counts[self._states[task.id]] -= 1
        counts[state] += 1
        self._states[task.id] = state

    def _give_up(self, task: Task) -> None:
        """A model fails with its job, or with any of its shards; what waits for it fails with it."""
        if isinstance(task, CalibrationTask):
            return
        if isinstance(task, Shard):
            self._transition(task, "failed")
        else:
            for follower in self._followers.get(task.folder, ()):
                self._give_up(follower)
        model = task if isinstance(task, Model) else task.model
        if model.job:
            self._transition(model, "failed")
        for shard in self._plan.shards[model.id]:
            if self._states[shard.id] == "waiting":
                self._transition(shard, "failed")

    def _runnable_since(self, task: Task) -> float:
        if task.id in self._requeued_at:
            return self._requeued_at[task.id]
        if isinstance(task, Shard):
            return max(self._calibrated, self._made_at.get(task.model.folder, self._start))
        return self._made_at.get(task.predecessor or "", self._start) if isinstance(task, Model) else self._start

    def _set(self, name: str, value: float, **tags: str) -> None:
        if self._meters:
            self._meters[name].set(value, tags)

    def _count(self, name: str, number: int = 1, **tags: str) -> None:
        if self._meters:
            self._meters[name].inc(number, tags)

    def _observe(self, name: str, value: float, **tags: str) -> None:
        if self._meters:
            self._meters[name].observe(value, tags)


def cause_of(outcome: Outcome) -> Cause:
    """Why work is tried again."""
    if outcome.state == "worker_lost":
        return "worker lost"
    return "out of memory" if "out of memory" in outcome.reason.casefold() else "error"


def _meters() -> dict[str, Any]:
    """The metrics as Ray has them, by name; none where Ray does not run."""
    ray = sys.modules.get("ray")  # whoever runs it has imported it
    if ray is None or not ray.is_initialized():
        return {}
    from ray.util.metrics import Counter, Gauge, Histogram

    def meter(metric: Metric) -> Any:
        if metric.kind == "histogram":
            return Histogram(metric.name, metric.help, BUCKETS, metric.tags)
        return (Counter if metric.kind == "counter" else Gauge)(metric.name, metric.help, metric.tags)

    return {metric.name: meter(metric) for metric in METRICS}


def _states(plan: Plan, remaining: RemainingTasks) -> Iterator[tuple[Model | Shard, str]]:
    """Every job and shard, and its state at the start. All shards of a failed model count as failed."""
    waiting = {model.id for model in remaining.jobs} | {shard.id for shard in remaining.shards}
    given_up = {model.id for model in (*remaining.failed, *remaining.blocked)}
    for model in plan.models:
        failed = model.id in given_up
        if model.job:
            yield model, "failed" if failed else "waiting" if model.id in waiting else "done"
        for shard in plan.shards[model.id]:
            yield shard, "failed" if failed else "waiting" if shard.id in waiting else "done"


def _hits(plan: Plan, remaining: RemainingTasks) -> dict[str, int]:
    """What was there already, by kind."""
    done = [task for task, state in _states(plan, remaining) if state == "done"]
    shards = [task for task in done if isinstance(task, Shard)]
    of_base = sum(shard.model.job is None for shard in shards)
    return {
        "calibration": len(plan.calibrations) - len(remaining.calibrations),
        "job": len(done) - len(shards),
        "base_shard": of_base,
        "shard": len(shards) - of_base,
    }


def _kind(task: Task) -> str:
    return "job" if isinstance(task, Model) else "shard" if isinstance(task, Shard) else "calibration"


def _method(task: Task) -> str:
    """The method's own name, of which there are few: not its label, of which a sweep has hundreds."""
    if isinstance(task, CalibrationTask):
        return "none"
    job = (task if isinstance(task, Model) else task.model).job
    return job.method if job else "base"
