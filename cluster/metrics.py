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

from efface.cluster.dispatch import Remaining
from efface.cluster.journal import WorkClock
from efface.cluster.plan import Calibration, Model, Plan, Shard
from efface.cluster.run_folder import Work
from efface.cluster.worker import Outcome

SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0]
"""Upper bounds of the histograms' buckets."""

STATES = ("waiting", "running", "done", "failed")
Cause = Literal["worker lost", "out of memory", "fault"]


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
    Metric("efface_work_seconds", "histogram", ("work", "method"), "Seconds that a finished piece of work took"),
    Metric(
        "efface_queue_wait_seconds",
        "histogram",
        ("work",),
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
        "efface_out_of_memory_halvings",
        "counter",
        ("work",),
        "Work done in batches of half the size, for the memory did not suffice",
    ),
)


class Metrics:
    """A watcher that keeps the metrics up to date; where no Ray runs there is nobody to tell, and it does nothing."""

    def __init__(self, plan: Plan, left: Remaining, workers: int) -> None:
        self._workers = workers
        self._meters = _meters()
        self._clock = WorkClock()
        self._plan = plan
        self._states = {work.id: state for work, state in _states(plan, left)}
        jobs = {model.id for model in plan.jobs}
        self._jobs = Counter(state for id, state in self._states.items() if id in jobs)
        self._shards = Counter(state for id, state in self._states.items() if id not in jobs)
        self._followers: dict[str, list[Model]] = {}
        for model in plan.jobs:
            if model.after:
                self._followers.setdefault(model.after, []).append(model)
        self._start = self._calibrated = time.monotonic()
        self._made: dict[str, float] = {}
        """When a model came to be, by its folder; those not in it were there from the start."""
        self._put_back: dict[str, float] = {}
        """When a piece of work was given back, to be tried again."""
        self._hits = _hits(plan, left)
        self.tick()

    def started(self, worker: int, work: Work) -> None:
        self._workers = max(self._workers, worker + 1)
        if not self._clock.under_way(work):
            waited = time.monotonic() - self._possible_since(work)
            self._observe("efface_queue_wait_seconds", waited, work=_kind(work))
        self._clock.started(worker, work)
        self._move(work, "running")

    def ended(self, worker: int, work: Work, outcome: Outcome, again: bool) -> None:
        seconds = self._clock.ended(worker, work)
        if outcome.state == "done":
            self._done(work, seconds, outcome.halved)
            return
        if again:
            self._count("efface_retries", cause=cause_of(outcome))
        if outcome.state == "spare" or self._clock.under_way(work):
            return  # another worker has done it, or has it still
        if again or outcome.state in ("stopped", "storage"):
            self._put_back[work.id] = time.monotonic()
            self._move(work, "waiting")
        else:
            self._give_up(work)

    def tick(self) -> None:
        """Ray exports a gauge once for each time it is set, so all of them are set again and again."""
        for state in STATES:
            self._set("efface_jobs", self._jobs[state], state=state)
            self._set("efface_shards", self._shards[state], state=state)
        self._set("efface_busy_fraction", self._clock.busy / self._workers)
        for kind, number in self._hits.items():
            self._set("efface_cache_hits", number, kind=kind)

    def _done(self, work: Work, seconds: float, halved: bool) -> None:
        self._move(work, "done")
        self._observe("efface_work_seconds", seconds, work=_kind(work), method=_method(work))
        if halved:
            self._count("efface_out_of_memory_halvings", work=_kind(work))
        if isinstance(work, Shard):
            self._count("efface_images", len(work.questions), method=_method(work))
        elif isinstance(work, Model):
            self._made[work.folder] = time.monotonic()
        else:
            self._calibrated = time.monotonic()

    def _move(self, work: Work, state: str) -> None:
        if isinstance(work, Calibration):
            return
        counts = self._jobs if isinstance(work, Model) else self._shards
        counts[self._states[work.id]] -= 1
        counts[state] += 1
        self._states[work.id] = state

    def _give_up(self, work: Work) -> None:
        """A model fails with its job, or with any of its shards; what waits for it fails with it."""
        if isinstance(work, Calibration):
            return
        if isinstance(work, Shard):
            self._move(work, "failed")
        else:
            for follower in self._followers.get(work.folder, ()):
                self._give_up(follower)
        model = work if isinstance(work, Model) else work.model
        if model.job:
            self._move(model, "failed")
        for shard in self._plan.shards[model.id]:
            if self._states[shard.id] == "waiting":
                self._move(shard, "failed")

    def _possible_since(self, work: Work) -> float:
        if work.id in self._put_back:
            return self._put_back[work.id]
        if isinstance(work, Shard):
            return max(self._calibrated, self._made.get(work.model.folder, self._start))
        return self._made.get(work.after or "", self._start) if isinstance(work, Model) else self._start

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
    if outcome.state == "lost":
        return "worker lost"
    return "out of memory" if "out of memory" in outcome.reason.casefold() else "fault"


def _meters() -> dict[str, Any]:
    """The metrics as Ray has them, by name; none where Ray does not run."""
    ray = sys.modules.get("ray")  # whoever runs it has imported it
    if ray is None or not ray.is_initialized():
        return {}
    from ray.util.metrics import Counter, Gauge, Histogram

    def meter(metric: Metric) -> Any:
        if metric.kind == "histogram":
            return Histogram(metric.name, metric.help, SECONDS, metric.tags)
        return (Counter if metric.kind == "counter" else Gauge)(metric.name, metric.help, metric.tags)

    return {metric.name: meter(metric) for metric in METRICS}


def _states(plan: Plan, left: Remaining) -> Iterator[tuple[Model | Shard, str]]:
    """Every job and shard, and its state at the start. All shards of a failed model count as failed."""
    waiting = {model.id for model in left.jobs} | {shard.id for shard in left.shards}
    given_up = {model.id for model in (*left.failed, *left.blocked)}
    for model in plan.models:
        failed = model.id in given_up
        if model.job:
            yield model, "failed" if failed else "waiting" if model.id in waiting else "done"
        for shard in plan.shards[model.id]:
            yield shard, "failed" if failed else "waiting" if shard.id in waiting else "done"


def _hits(plan: Plan, left: Remaining) -> dict[str, int]:
    """What was there already, by kind."""
    done = [work for work, state in _states(plan, left) if state == "done"]
    shards = [work for work in done if isinstance(work, Shard)]
    of_base = sum(shard.model.job is None for shard in shards)
    return {
        "calibration": len(plan.calibrations) - len(left.calibrations),
        "job": len(done) - len(shards),
        "base_shard": of_base,
        "shard": len(shards) - of_base,
    }


def _kind(work: Work) -> str:
    return "job" if isinstance(work, Model) else "shard" if isinstance(work, Shard) else "calibration"


def _method(work: Work) -> str:
    """The method's own name, of which there are few: not its label, of which a sweep has hundreds."""
    if isinstance(work, Calibration):
        return "none"
    job = (work if isinstance(work, Model) else work.model).job
    return job.method if job else "base"
