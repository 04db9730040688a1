"""What a campaign would take on 8 or on 4,096 GPUs: the real dispatcher and its queue, over GPUs in virtual time.

    python -m benchmarks.scheduler.simulate esd-ablation --gpus 8,64,1024,4096 --speeds 1.0,0.5

The policy is not modelled, it is run: `dispatch` drives GPUs that only look up how long each task takes
(`rates.py`). They start, load models, fail and are preempted. What comes out is compared with what
no policy could beat (`bounds.py`). The driver's own time, milliseconds a task, is left out.
"""

import heapq
import itertools
import json
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.scheduler.bounds import Chain, longest_first, lower_bound
from efface.cluster.campaign.rates import Rates, durations, read_rates
from efface.cluster.campaign.spec import read_campaign
from efface.cluster.scheduler.dispatch import dispatch
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.tasks.calibration import CalibrationPart
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Priority, Task
from efface.cluster.workers.executor import ProcessGroups
from efface.errors import JobFailure, UserError

HOUR = 3600.0

LEGEND = """bound: no schedule ends before it, by work, by waiting for models, by the longest chain, or by rounds
LPT: longest task first, if no task waited for another; loads: models that replaced others; lost: given up"""

Fate = Literal["done", "failure", "preemption"]


@dataclass(frozen=True)
class FailureModel:
    """How often things break on each GPU while it works. Times between two are exponential, by `seed`."""

    failures_per_hour: float = 0.0
    """A task breaks; its worker lives."""
    preemptions_per_hour: float = 0.0
    """A worker is lost with all its tasks, and a new one replaces it."""
    seed: int = 0


@dataclass(frozen=True)
class Span:
    """What a GPU did for a while."""

    start: float
    end: float
    worker: int
    task: Task
    fate: Fate


class VirtualGPUs:
    """An `Executor` whose workers take two tasks at a time, as Ray actors do, and no time at all."""

    depth = 2
    process_groups: ProcessGroups | None = None

    def __init__(
        self, seconds: Mapping[str, float], speeds: Sequence[float], rates: Rates, failures: FailureModel | None = None
    ) -> None:
        """`seconds`: of each task, by its id, on a GPU of speed 1."""
        self.workers = len(speeds)
        self.now = 0.0
        self.loads = 0
        self.history: list[Span] = []
        self._seconds, self._speeds, self._rates = seconds, speeds, rates
        self._failures = failures or FailureModel()
        self._generator = random.Random(self._failures.seed)
        self._queues: list[deque[Task]] = [deque() for _ in speeds]
        self._new_workers = list(range(self.workers))
        self._ready = [rates.start_seconds] * self.workers
        self._resident: list[str | None] = [None] * self.workers
        self._events: list[tuple[float, int, Span]] = []
        self._order = itertools.count()

    def new_workers(self) -> list[int]:
        new_workers, self._new_workers = self._new_workers, []
        return new_workers

    def speed(self, worker: int) -> float:
        return self._speeds[worker]

    def submit(self, worker: int, task: Task) -> None:
        self._queues[worker].append(task)
        if len(self._queues[worker]) == 1:
            self._start_next(worker)

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        """Moves the clock to the next thing that ends; `timeout` means nothing here."""
        self.now, _, ended = heapq.heappop(self._events)
        self.history.append(ended)
        worker, queued = ended.worker, self._queues[ended.worker]
        if ended.fate == "preemption":
            worker_lost = list(queued)
            queued.clear()
            self._resident[worker] = None
            self._ready[worker] = self.now + self._rates.start_seconds
            self._new_workers.append(worker)
            yield from ((worker, task, Outcome.worker_lost(ended.fate, worker_gone=True)) for task in worker_lost)
            return
        queued.popleft()
        if queued:
            self._start_next(worker)
        yield worker, ended.task, Outcome.done() if ended.fate == "done" else Outcome.error(ended.fate)

    def replace(self, worker: int) -> bool:
        return False

    def clock(self) -> float:
        return self.now

    def close(self) -> None:
        pass

    def _start_next(self, worker: int) -> None:
        task = self._queues[worker][0]
        start = max(self.now, self._ready[worker])
        seconds = (self._load(worker, task) + self._seconds[task.id]) / self._speeds[worker]
        ends: list[tuple[float, Fate]] = [
            (seconds, "done"),
            (self._sample_delay(self._failures.failures_per_hour), "failure"),
            (self._sample_delay(self._failures.preemptions_per_hour), "preemption"),
        ]
        lasted, fate = min(ends, key=lambda end: end[0])
        span = Span(start, start + lasted, worker, task, fate)
        heapq.heappush(self._events, (span.end, next(self._order), span))

    def _load(self, worker: int, task: Task) -> float:
        """Makes the model that `task` needs resident; how long that takes. To the base itself it takes no time."""
        model = task.model if task.priority is Priority.FILL and task.resident else None
        resident = model.id if model and model.job else None
        if resident == self._resident[worker]:
            return 0.0
        self._resident[worker] = resident
        if resident is None:
            return 0.0
        self.loads += 1
        return self._rates.load_seconds

    def _sample_delay(self, per_hour: float) -> float:
        return self._generator.expovariate(per_hour / HOUR) if per_hour else float("inf")


@dataclass(frozen=True)
class Forecast:
    """What a campaign comes to on some GPUs. Times in seconds."""

    gpus: int
    makespan: float
    busy: float
    """Share of the GPUs' time in which they worked, also in vain; the rest they started or waited."""
    bound: float
    bound_by: str
    ratio: float | None
    """makespan / bound; None where work was given up, so that less was done than the bound asks for."""
    lpt: float
    """The makespan of LPT, longest task first, if no task had to wait for another and no model to be loaded."""
    loads: int
    failures: int
    given_up: int
    """Models that broke twice, and are lost."""


class _FailureRecorder:
    """In place of the run folder, which only keeps failures."""

    def __init__(self) -> None:
        self.models: set[str] = set()

    def fail(self, model: Model, stage: str, reason: str, details: str) -> None:
        self.models.add(model.id)


def simulate(
    remaining: RemainingTasks,
    seconds: Mapping[str, float],
    speeds: Sequence[float],
    rates: Rates,
    failures: FailureModel | None = None,
) -> Forecast:
    """Does what is `remaining` in virtual time, on one GPU for each of `speeds`; `seconds` as `durations` gives them.

    Raises JobFailure as `dispatch` does, where a judge's calibration breaks twice.
    """
    gpus = VirtualGPUs(seconds, speeds, rates, failures)
    given_up = _FailureRecorder()
    dispatch(remaining, given_up, gpus, [])
    calibrations = [seconds[task.id] for task in (*remaining.calibrations, *remaining.of_kind(CalibrationPart))]
    chains = _chains(remaining, seconds, rates.load_seconds)
    bound = lower_bound(calibrations, chains, speeds)
    tasks = [*calibrations, *(task for chain in chains for task in (chain.training, *chain.shards))]
    least = bound.seconds + rates.start_seconds
    busy = sum(span.end - span.start for span in gpus.history)
    return Forecast(
        gpus=len(speeds),
        makespan=gpus.now,
        busy=busy / (gpus.now * len(speeds)),
        bound=least,
        bound_by=bound.reason,
        ratio=None if given_up.models else gpus.now / least,
        lpt=longest_first(tasks, speeds) + rates.start_seconds,
        loads=gpus.loads,
        failures=sum(span.fate != "done" for span in gpus.history),
        given_up=len(given_up.models),
    )


def _chains(remaining: RemainingTasks, seconds: Mapping[str, float], load: float) -> list[Chain]:
    """Every model that is left to be made or judged."""
    training = {task.id: seconds[task.id] for task in remaining.trainings}
    edited = {shard.model.id for shard in remaining.shards if shard.model.job}
    shards: dict[str, list[float]] = {model: [] for model in training}
    for shard in remaining.shards:
        shards.setdefault(shard.model.id, []).append(seconds[shard.id])
    return [Chain(training.get(m, 0.0), tuple(shards[m]), load if m in edited else 0.0) for m in shards]


def main(
    campaign: Annotated[str, typer.Argument(help="A campaign file, or a shipped one by name.")],
    gpus: Annotated[str, typer.Option(help="Cluster sizes.")] = "8,64,1024,4096",
    speeds: Annotated[str, typer.Option(help="Relative speeds that the GPUs have in turn.")] = "1.0",
    failures_per_hour: Annotated[float, typer.Option(min=0, help="Tasks that break, per GPU.")] = 0.0,
    preemptions_per_hour: Annotated[float, typer.Option(min=0, help="Workers that are lost, per GPU.")] = 0.0,
    rates: Annotated[str, typer.Option(help="How long work takes: a file, or shipped rates by name.")] = "h200",
    seed: Annotated[int, typer.Option(help="Of the spread of durations, and of failures and preemptions.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """How long a campaign takes on clusters of several sizes, and how near that is to what is possible."""
    from efface.cluster.campaign.planner import plan_campaign  # it knows the methods, and they need torch

    sizes, relative = _numbers("gpus", gpus), _numbers("speeds", speeds)
    if any(size != int(size) for size in sizes):
        raise UserError(f"--gpus {gpus}: should be whole numbers")
    plan = plan_campaign(read_campaign(campaign), fetch=False)
    known = read_rates(rates)
    seconds = durations(plan, known, seed)
    failures = FailureModel(failures_per_hour, preemptions_per_hour, seed)
    forecasts = [
        simulate(
            RemainingTasks.everything(plan),
            seconds,
            list(itertools.islice(itertools.cycle(relative), int(size))),
            known,
            failures,
        )
        for size in sizes
    ]
    if as_json:
        what = {"campaign": plan.name, "device": known.device, "jobs": len(plan.jobs), "images": plan.images}
        print(json.dumps({**what, "speeds": relative, "forecasts": [asdict(f) for f in forecasts]}, indent=2))
        return
    print(f"{plan.name}: {len(plan.jobs)} jobs, {plan.shard_count} shards, {plan.images} images; {known.device}")
    Console(highlight=False).print(_table(forecasts))
    print(LEGEND)


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise UserError(f"--{option} {text}: should be numbers above 0 with commas between them")
    return numbers


def _table(forecasts: Sequence[Forecast]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("GPUs", "makespan", "busy", "bound", "by", "ratio", "LPT", "loads", "failures", "lost"):
        table.add_column(title, justify="left" if title == "by" else "right", no_wrap=True)
    for f in forecasts:
        counts = [f"{count:,}" for count in (f.loads, f.failures, f.given_up)]
        ratio = "" if f.ratio is None else f"{f.ratio:.3f}"
        times = [_clock(f.makespan), f"{f.busy:.1%}", _clock(f.bound), f.bound_by, ratio, _clock(f.lpt)]
        table.add_row(f"{f.gpus:,}", *times, *counts)
    return table


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


if __name__ == "__main__":
    try:
        typer.run(main)
    except (UserError, JobFailure) as error:
        print(f"efface: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
