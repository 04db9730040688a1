"""What a plan will cost by given rates: worker hours, by kind and method, and bytes on storage; and what is unknown."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import Rates, rate_of, task_bytes, task_seconds
from efface.cluster.tasks.task import Priority, Task
from efface.cluster.tasks.training import TrainingTask

HOUR = 3600.0


@dataclass(frozen=True)
class Estimate:
    """Times in seconds of one worker; n equal workers take at best an n-th of them."""

    device: str
    basis: str
    """Where the rates come from: "measured", "estimated" or "partly measured"."""
    gpus: float
    """Of one worker."""
    by_kind: dict[str, dict[str, float]]
    """By kind of task, then by method."""
    disk_bytes: int
    unknown: tuple[str, ...]
    """What is left to do and not counted, as there is no rate for it."""

    @property
    def seconds(self) -> float:
        """Of one worker, for everything."""
        return sum(seconds for of_kind in self.by_kind.values() for seconds in of_kind.values())

    @property
    def gpu_hours(self) -> float:
        """0 where workers compute on the CPU."""
        return self.seconds * self.gpus / HOUR

    def describe(self) -> list[str]:
        """In sentences."""
        parts = [_describe_kind(kind, of_kind) for kind, of_kind in self.by_kind.items()]
        lines = []
        if parts:
            who = "one worker" if self.gpus in (0, 1) else f"one worker with {self.gpus:g} of a GPU"
            lines = [
                f"about {_time(self.seconds)} of {who} on {self.device} (rates {self.basis}): {', '.join(parts)}",
                f"about {_size(self.disk_bytes)} of results",
            ]
        return [*lines, *(f"not counted, as there is no rate for it: {what}" for what in self.unknown)]

    def as_json(self) -> dict[str, Any]:
        """Every number, and the totals."""
        return {**asdict(self), "seconds": self.seconds, "gpu_hours": self.gpu_hours}


def estimate(plan: Plan, tasks: Iterable[Task], rates: Rates) -> Estimate:
    """What `tasks`, some of a plan, cost by the rates; what they do not know is named and not counted."""
    by_kind: dict[str, dict[str, float]] = {}
    unknown_seconds: Counter[tuple[str, str, str]] = Counter()
    unknown_bytes: dict[tuple[str, str], None] = {}
    used: set[tuple[str, str]] = set()
    loaded: set[tuple[str, str]] = set()
    disk = 0.0
    for task in tasks:
        uses = task.rate_uses(plan)
        known = {(use.table, use.name) for use in uses if rate_of(use, rates) is not None}
        seconds, size = task_seconds(task, plan, rates), task_bytes(task, plan, rates)
        if seconds is None:
            unknown_seconds[task.kind, uses[0].name, task.unit] += task.size
        else:
            if not any(table.startswith("seconds") for table, _ in known):
                known.add(("tflops", task.method))
            seconds += _loading(task, loaded, rates)
            of_kind = by_kind.setdefault(task.kind, {})
            of_kind[task.method] = of_kind.get(task.method, 0.0) + seconds
        if size is None:
            unknown_bytes[task.kind, uses[-1].name] = None
        disk += size or 0.0
        used |= known
    measured = [name in rates.counts.get(table, {}) for table, name in used]
    return Estimate(
        device=rates.device,
        basis="measured" if measured and all(measured) else "partly measured" if any(measured) else "estimated",
        gpus=plan.resources.gpus,
        by_kind=by_kind,
        disk_bytes=round(disk),
        unknown=(
            *(f"{kind} by '{name}' ({_count(n, unit)})" for (kind, name, unit), n in unknown_seconds.items()),
            *(f"storage after {kind} by '{name}'" for kind, name in unknown_bytes),
        ),
    )


def _loading(task: Task, loaded: set[tuple[str, str]], rates: Rates) -> float:
    """Seconds to load the delta of a model, for the first task of a kind that fills time with it."""
    if task.priority is not Priority.FILL or task.resident is None or not task.model or not task.model.job:
        return 0.0
    key = (task.kind, task.model.folder)
    if key in loaded:
        return 0.0
    loaded.add(key)
    return rates.load_seconds


def _describe_kind(kind: str, by_method: dict[str, float]) -> str:
    """`training 75 s (uce 5 s, esd 70 s)`."""
    whole = f"{kind} {_time(sum(by_method.values()))}"
    if kind != TrainingTask.kind:
        return whole  # of other kinds the method says little
    return f"{whole} ({', '.join(f'{method} {_time(seconds)}' for method, seconds in by_method.items())})"


def _time(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / HOUR:.1f} h"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
