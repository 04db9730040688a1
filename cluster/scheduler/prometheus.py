"""A run in numbers, for Prometheus: custom metrics of Ray, which every Ray cluster exports already.

PROMETHEUS_METRICS is the one list of them. `docs/monitoring.md` says how to look at them, and
`cluster/deploy/grafana.json` is a dashboard of exactly these. Tags are few and have few values: a run has thousands of
tasks, and none has its own series. `kind` is the kind of task: training, judging, and so on.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from efface.cluster.campaign.plan import Plan
from efface.cluster.storage.journal import TaskTimer
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.retry_rules import Next, Outcome
from efface.cluster.tasks.task import Task

BUCKETS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0]
"""Upper bounds of the histograms' buckets."""

STATES = ("waiting", "running", "done", "failed")
Cause = Literal["worker lost", "out of memory", "error"]


@dataclass(frozen=True)
class PrometheusMetric:
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


PROMETHEUS_METRICS = (
    PrometheusMetric(
        "efface_tasks",
        "gauge",
        ("kind", "state"),
        "Tasks by kind (training, judging) and state: waiting, running, done, failed (given up with their model)",
    ),
    PrometheusMetric(
        "efface_units",
        "counter",
        ("kind", "method"),
        "Units of finished tasks (images of judging, else tasks), by the method that made the model",
    ),
    PrometheusMetric("efface_task_seconds", "histogram", ("kind", "method"), "Seconds that a finished task took"),
    PrometheusMetric(
        "efface_queue_wait_seconds",
        "histogram",
        ("kind",),
        "Seconds from when a task could be done until a worker was given it",
    ),
    PrometheusMetric("efface_busy_fraction", "gauge", (), "Workers that have something to do, of all"),
    PrometheusMetric("efface_cache_hits", "gauge", ("kind",), "Tasks that were done already when the run started"),
    PrometheusMetric("efface_retries", "counter", ("cause",), "Tasks tried again: worker lost, out of memory, error"),
    PrometheusMetric(
        "efface_out_of_memory_smaller_batches",
        "counter",
        ("kind",),
        "Tasks done with a smaller batch, as the memory did not suffice",
    ),
)


class PrometheusMetrics:
    """A callback that keeps the metrics up to date; where no Ray runs nobody reads them, and it does nothing."""

    def __init__(self, plan: Plan, remaining: RemainingTasks, workers: int) -> None:
        self._workers = workers
        self._meters = _meters()
        self._clock = TaskTimer()
        self._kinds = list(dict.fromkeys(task.kind for task in plan.tasks))
        self._states = _states(plan, remaining)
        self._counts = Counter((task.kind, self._states[task.id]) for task in plan.tasks)
        self._hits = {kind: self._counts[kind, "done"] for kind in self._kinds}
        self._tasks_of: dict[str, list[Task]] = {}
        """By the folder of their model."""
        self._waiting_for: dict[str, dict[str, Model]] = {}
        """By product, the models that require it, by their folders."""
        for task in plan.tasks:
            if task.model:
                self._tasks_of.setdefault(task.model.folder, []).append(task)
                for product in task.requires:
                    self._waiting_for.setdefault(product, {})[task.model.folder] = task.model
        self._start = time.monotonic()
        self._provided_at: dict[str, float] = {}
        """When a product was made; those not in it were there from the start."""
        self._requeued_at: dict[str, float] = {}
        """When a task was given back, to be tried again."""
        self.tick()

    def started(self, worker: int, task: Task) -> None:
        self._workers = max(self._workers, worker + 1)
        if not self._clock.is_running(task):
            self._observe("efface_queue_wait_seconds", time.monotonic() - self._runnable_since(task), kind=task.kind)
        self._clock.started(worker, task)
        self._transition(task, "running")

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        seconds = self._clock.ended(worker, task)
        if outcome.is_done:
            self._done(task, seconds, outcome.smaller_batch)
            return
        if will_retry:
            self._count("efface_retries", cause=cause_of(outcome))
        if outcome.next is Next.NOTHING or self._clock.is_running(task):
            return  # another worker has done it, or is still doing it
        if will_retry or outcome.next in (Next.STOP, Next.ABORT):
            self._requeued_at[task.id] = time.monotonic()
            self._transition(task, "waiting")
        else:
            self._transition(task, "failed")
            if task.model:
                self._give_up([task.model])

    def tick(self) -> None:
        """Ray exports a gauge once for each time it is set, so all of them are set again and again."""
        for kind in self._kinds:
            for state in STATES:
                self._set("efface_tasks", self._counts[kind, state], kind=kind, state=state)
            self._set("efface_cache_hits", self._hits[kind], kind=kind)
        self._set("efface_busy_fraction", self._clock.busy / self._workers)

    def _done(self, task: Task, seconds: float, smaller_batch: bool) -> None:
        self._transition(task, "done")
        self._observe("efface_task_seconds", seconds, kind=task.kind, method=task.method)
        self._count("efface_units", task.size, kind=task.kind, method=task.method)
        if smaller_batch:
            self._count("efface_out_of_memory_smaller_batches", kind=task.kind)
        if task.provides:
            self._provided_at[task.provides] = time.monotonic()

    def _transition(self, task: Task, state: str) -> None:
        self._counts[task.kind, self._states[task.id]] -= 1
        self._counts[task.kind, state] += 1
        self._states[task.id] = state

    def _give_up(self, models: Iterable[Model]) -> None:
        """A model fails as a whole, and with it whatever requires what is not made any more."""
        given_up: set[str] = set()
        left = list(models)
        while left:
            model = left.pop()
            if model.folder in given_up:
                continue
            given_up.add(model.folder)
            for task in self._tasks_of.get(model.folder, ()):
                state = self._states[task.id]
                if state == "waiting" or task.provides == model.folder:
                    self._transition(task, "failed")
                if task.provides and state != "done":
                    left += self._waiting_for.get(task.provides, {}).values()

    def _runnable_since(self, task: Task) -> float:
        if task.id in self._requeued_at:
            return self._requeued_at[task.id]
        return max((self._provided_at.get(product, self._start) for product in task.requires), default=self._start)

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
    """Why a task is tried again."""
    if outcome.state == "worker_lost":
        return "worker lost"
    return "out of memory" if "out of memory" in outcome.reason.casefold() else "error"


def _meters() -> dict[str, Any]:
    """The metrics as Ray has them, by name; none where Ray does not run."""
    ray = sys.modules.get("ray")  # whoever runs it has imported it
    if ray is None or not ray.is_initialized():
        return {}
    from ray.util.metrics import Counter, Gauge, Histogram

    def meter(metric: PrometheusMetric) -> Any:
        if metric.kind == "histogram":
            return Histogram(metric.name, metric.help, BUCKETS, metric.tags)
        return (Counter if metric.kind == "counter" else Gauge)(metric.name, metric.help, metric.tags)

    return {metric.name: meter(metric) for metric in PROMETHEUS_METRICS}


def _states(plan: Plan, remaining: RemainingTasks) -> dict[str, str]:
    """Of every task at the start, by its id. All judging of a failed model counts as failed."""
    waiting = {task.id for task in remaining.tasks}
    given_up = {model.folder for model in (*remaining.failed, *remaining.blocked)}

    def state(task: Task) -> str:
        if task.model and task.model.folder in given_up:
            return "failed"
        return "waiting" if task.id in waiting else "done"

    return {task.id: state(task) for task in plan.tasks}
