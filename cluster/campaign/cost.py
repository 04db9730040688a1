"""What a plan will cost by given rates: worker hours, by method, and bytes on storage; and what is not known."""

from dataclasses import asdict, dataclass
from typing import Any

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import Rates, bytes_of, calibration_images, seconds_of
from efface.cluster.scheduler.dispatch import RemainingTasks
from efface.train.job import Job

HOUR = 3600.0


@dataclass(frozen=True)
class Estimate:
    """Times in seconds of one worker; n equal workers take at best an n-th of them."""

    device: str
    basis: str
    """On what the rates used stand: "measured", "estimated" or "partly measured"."""
    gpus: float
    """Of one worker."""
    training: dict[str, float]
    """By method."""
    judging: float
    calibrating: float
    disk_bytes: int
    unknown: tuple[str, ...]
    """What is left to do and not counted, as there is no rate for it."""

    @property
    def seconds(self) -> float:
        """Of one worker, for everything."""
        return sum(self.training.values()) + self.judging + self.calibrating

    @property
    def gpu_hours(self) -> float:
        """0 where workers compute on the CPU."""
        return self.seconds * self.gpus / HOUR

    def describe(self) -> list[str]:
        """In sentences."""
        methods = ", ".join(f"{method} {_time(seconds)}" for method, seconds in self.training.items())
        parts = [
            *([f"training {_time(sum(self.training.values()))} ({methods})"] if self.training else []),
            *([f"judging {_time(self.judging)}"] if self.judging else []),
            *([f"calibrating judges {_time(self.calibrating)}"] if self.calibrating else []),
        ]
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


def estimate(plan: Plan, remaining: RemainingTasks, rates: Rates) -> Estimate:
    """What is `remaining` of a plan, by the rates; what they do not know is named and not counted."""
    unknown: list[str] = []
    used: list[tuple[str, str]] = []

    def rate(table: str, name: str, what: str) -> float:
        found: float | None = getattr(rates, table).get(name)
        if found is None:
            unknown.append(what)
            return 0.0
        used.append((table, name))
        return found

    training: dict[str, float] = {}
    disk = 0.0
    for method, jobs in _by_method(remaining).items():
        times, sizes = ([of(job, rates, plan) for job in jobs] for of in (seconds_of, bytes_of))
        if None in times:
            unknown.append(f"training by '{method}' ({_count(times.count(None), 'job')})")
        if known := [seconds for seconds in times if seconds is not None]:
            training[method] = sum(known)
            tables = [table for table in ("seconds_per_step", "seconds_per_job") if method in getattr(rates, table)]
            used += [(table, method) for table in tables or ["tflops"]]
        if None in sizes:
            unknown.append(f"storage of models by '{method}'")
        disk += sum(size for size in sizes if size is not None)
        used += [("bytes_per_delta", method)] * (method in rates.bytes_per_delta)

    recipe, images = plan.recipe.name, sum(len(shard.eval_requests) for shard in remaining.shards)
    calibration_image_count = calibration_images(plan) * len(remaining.calibrations)
    per_image = 0.0
    if images or calibration_image_count:
        per_image = rate(
            "seconds_per_image", recipe, f"making {_count(images + calibration_image_count, 'image')} by '{recipe}'"
        )
    if images:
        disk += images * rate("bytes_per_image", recipe, f"storage of images by '{recipe}'")
    loads = len({shard.model.id for shard in remaining.shards if shard.model.job})
    measured = [name in rates.counts.get(table, {}) for table, name in used]
    return Estimate(
        device=rates.device,
        basis="measured" if measured and all(measured) else "partly measured" if any(measured) else "estimated",
        gpus=plan.resources.gpus,
        training=training,
        judging=images * per_image + loads * rates.load_seconds,
        calibrating=calibration_image_count * per_image,
        disk_bytes=round(disk),
        unknown=tuple(unknown),
    )


def _by_method(remaining: RemainingTasks) -> dict[str, list[Job]]:
    jobs: dict[str, list[Job]] = {}
    for model in remaining.jobs:
        if model.job:
            jobs.setdefault(model.job.method, []).append(model.job)
    return jobs


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
