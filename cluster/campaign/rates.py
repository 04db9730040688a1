"""How long work takes, and how many bytes it leaves, on one kind of device: rates, estimated or measured.

Estimates are shipped in `configs/rates/` or come in a file of one's own. What finished runs took is kept beside them
(`cluster/measured_rates.py`) and goes before them. A method that no table knows is estimated by counting its operations
(`counted_rates.py`) and by what the device sustains.
"""

import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from efface.cluster.campaign.plan import Plan
from efface.cluster.tasks.task import RateUse, Task
from efface.config_files import StrictModel, find_config, list_configs, read_config
from efface.errors import UserError
from efface.files import file_stem
from efface.models.fingerprint import cache_folder

Precision = Literal["fp32", "bf16"]
Positive = Annotated[float, Field(gt=0)]
Table = dict[str, Positive]

TABLES = {
    "seconds_per_image": "recipe",
    "seconds_per_job": "method",
    "seconds_per_step": "method",
    "seconds_per_task": "kind of task",
    "bytes_per_delta": "method",
    "bytes_per_image": "recipe",
}
"""And what the names in each are."""


class Rates(StrictModel):
    """A YAML or JSON file, or one shipped in `configs/rates/`."""

    device: str = Field(description="'cpu', or the GPU's name in torch")
    base: str | None = Field(None, description="the base they hold for; none: any")
    seconds_per_image: Table = Field(description="by recipe: to sample an image and judge it")
    tflops: dict[Precision, Positive] = Field(
        {}, description="10^12 operations that the device sustains in a second of training, by precision"
    )
    job_seconds: float = Field(
        0.0, ge=0, description="of a job whose operations are counted, beside them: prompts, a closed form, the delta"
    )
    seconds_per_job: Table = Field(
        {},
        description="by method: to train a model, for each of its concepts; where `seconds_per_step` knows the method, "
        "only what comes before its first step; a method in neither table is counted",
    )
    seconds_per_step: Table = Field({}, description="by method: an optimiser step")
    seconds_per_task: Table = Field({}, description="by kind: a task of any other kind")
    bytes_per_delta: Table = Field({}, description="by method: a finished model on storage; else its weights in fp32")
    bytes_per_image: Table = Field({}, description="by recipe: an image and its verdicts on storage")
    load_seconds: float = Field(0.0, ge=0, description="to replace a model's delta in memory by another's")
    start_seconds: float = Field(0.0, ge=0, description="until a new worker has its base and judges loaded")
    spread: float = Field(0.0, ge=0, lt=1, description="relative standard deviation between tasks of one kind")
    counts: dict[str, dict[str, int]] = Field(
        {},
        description="by table and name: the images, steps or models that a measured mean stands on; else an estimate",
    )


def read_rates(name_or_path: str | Path) -> Rates:
    """The rates of that name or in that file. Raises UserError."""
    return read_config(Rates, find_config("rates", name_or_path))


def find_rates(device: str, base: str) -> Rates | None:
    """What is known of a base on a device: what was measured there, and the shipped estimates of the rest."""
    fitting = [known for known in map(read_rates, list_configs("rates")) if known.device == device]
    estimated = next((known for known in fitting if known.base in (None, base)), None)
    measured = None
    with suppress(UserError):  # none yet, or a damaged file
        measured = read_config(Rates, measured_file(device, base))
    return _overlay(estimated, measured) if estimated and measured else measured or estimated


def measured_file(device: str, base: str) -> Path:
    """Where the rates measured for a base on a device are kept on this machine."""
    return cache_folder() / "rates" / f"{file_stem(device)}-{file_stem(base)}.json"


def this_device(gpus: float) -> str | None:
    """The device that a worker with so many GPUs would have on this machine; None where it has none."""
    if not gpus:
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def rates_for(plan: Plan, name_or_path: str | Path | None = None) -> Rates | None:
    """The requested rates, else those known of this machine's device. Raises UserError where the name is unknown."""
    if name_or_path is not None:
        return read_rates(name_or_path)
    device = this_device(plan.resources.gpus)
    return find_rates(device, plan.base.name) if device else None


def rate_of(use: RateUse, rates: Rates) -> float | None:
    """None where the table does not know the name."""
    known: float | None = getattr(rates, use.table).get(use.name)
    return known


def seconds_of(uses: Iterable[RateUse], rates: Rates) -> float | None:
    """How long a task with these uses takes; None where the rates know nothing of it."""
    of_seconds = [(use, rate_of(use, rates)) for use in uses if use.table.startswith("seconds")]
    known = [use.times * rate for use, rate in of_seconds if rate is not None]
    return sum(known) if known else None


def task_seconds(task: Task, plan: Plan, rates: Rates) -> float | None:
    """How long a task of the plan takes: by the tables, or by its counted operations and what the device sustains.

    None where neither is known.
    """
    known = seconds_of(task.rate_uses(plan), rates)
    counted = task.counted_cost(plan) if known is None and rates.tflops else None
    if counted is None:
        return known
    slowest = min(rates.tflops.values())
    return rates.job_seconds + sum(
        flops / (rates.tflops.get(precision, slowest) * 1e12) for precision, flops in counted.flops.items()
    )


def task_bytes(task: Task, plan: Plan, rates: Rates) -> float | None:
    """Bytes that a task of the plan leaves on storage; None where neither the rates nor counting know."""
    uses = [use for use in task.rate_uses(plan) if use.table.startswith("bytes")]
    known = [use.times * rate for use in uses if (rate := rate_of(use, rates)) is not None]
    if known or not uses:
        return sum(known)
    counted = task.counted_cost(plan) if rates.tflops else None
    return counted.bytes if counted else None


def durations(plan: Plan, rates: Rates, seed: int = 0) -> dict[str, float]:
    """Seconds that each task of a plan takes on the rates' device, by its id.

    With `rates.spread` they are random about their means, each by its id and `seed`. Raises UserError where the rates
    do not know the recipe or a method.
    """
    means = {}
    for task in plan.tasks:
        seconds = task_seconds(task, plan, rates)
        if seconds is None:
            raise _unknown(rates, task.rate_uses(plan))
        means[task.id] = seconds
    if not rates.spread:
        return means
    # A gamma distribution: positive, with this mean and relative standard deviation.
    shape = rates.spread**-2
    return {
        name: random.Random(f"{seed} {name}").gammavariate(shape, mean / shape) if mean else 0.0
        for name, mean in means.items()
    }


def _unknown(rates: Rates, uses: Sequence[RateUse]) -> UserError:
    use = [use for use in uses if use.table.startswith("seconds")][-1]
    known = ", ".join(sorted(getattr(rates, use.table))) or "none"
    return UserError(f"rates of {rates.device}: {use.table} knows no {TABLES[use.table]} '{use.name}', only {known}")


def _overlay(estimated: Rates, measured: Rates) -> Rates:
    """Measured rates, and estimates where nothing was measured."""
    tables = {table: {**getattr(estimated, table), **getattr(measured, table)} for table in TABLES}
    # A method's time was measured as a whole, in one of the two tables; an estimate in the other would count it twice.
    for table, other in (("seconds_per_job", "seconds_per_step"), ("seconds_per_step", "seconds_per_job")):
        for method in getattr(measured, table).keys() - getattr(measured, other).keys():
            tables[other].pop(method, None)
    return estimated.model_copy(update={**tables, "base": measured.base, "counts": measured.counts})
