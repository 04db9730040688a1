"""How long work takes, and how many bytes it leaves, on one kind of device: rates, estimated or measured.

Estimates are shipped in `configs/rates/` or come in a file of one's own. What finished runs took is kept beside them
(`measured_rates.py`) and goes before them. A method that no table knows is estimated by counting its operations
(`counted_rates.py`) and by what the device sustains.
"""

import random
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from efface.cluster.campaign.plan import Plan
from efface.cluster.workers.worker import CALIBRATION_SEEDS
from efface.config_files import StrictModel, find_config, list_configs, read_config
from efface.errors import UserError
from efface.files import slug
from efface.models.fingerprint import cache_folder

if TYPE_CHECKING:
    from efface.train.job import Job

Precision = Literal["fp32", "bf16"]
Positive = Annotated[float, Field(gt=0)]
Table = dict[str, Positive]

TABLES = ("seconds_per_image", "seconds_per_job", "seconds_per_step", "bytes_per_delta", "bytes_per_image")


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
    bytes_per_delta: Table = Field({}, description="by method: a finished model on storage; else its weights in fp32")
    bytes_per_image: Table = Field({}, description="by recipe: an image and its verdicts on storage")
    load_seconds: float = Field(0.0, ge=0, description="to put a model's delta in the place of another's")
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
    return cache_folder() / "rates" / f"{slug(device)}-{slug(base)}.json"


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


def seconds_of(job: "Job", rates: Rates, plan: Plan) -> float | None:
    """How long the training of a job of the plan takes.

    By the tables of the rates, or by counted operations; None where the rates know neither the method nor `tflops`,
    or the base's shapes are not on this machine.
    """
    steps = steps_of(job)
    # A request of a chain is trained on its last concept alone; a closed form is solved for all so far.
    concepts = 1 if job.strategy == "continual" and steps else len(job.concepts)
    per_job, per_step = rates.seconds_per_job.get(job.method), rates.seconds_per_step.get(job.method)
    if per_job is not None or (per_step and steps):
        return (per_job or 0.0) * concepts + (per_step or 0.0) * steps
    if not rates.tflops:
        return None
    from efface.cluster.campaign.counted_rates import job_flops

    counted = job_flops(job, plan, steps, concepts)
    if counted is None:
        return None
    flops, precision = counted
    sustained = rates.tflops.get(precision) or min(rates.tflops.values())
    return rates.job_seconds + flops / (sustained * 1e12)


def bytes_of(job: "Job", rates: Rates, plan: Plan) -> float | None:
    """Bytes of a finished model on storage; None where neither the rates nor the base's shapes are known."""
    known = rates.bytes_per_delta.get(job.method)
    if known is not None or not rates.tflops:
        return known
    from efface.cluster.campaign.counted_rates import counted

    found = counted(job, plan.base)
    return float(found.delta_bytes) if found else None


def steps_of(job: "Job") -> int:
    """The optimiser steps a job will take; 0 for a closed form."""
    from efface.train.method import GradientMethod, get_method, parse_config

    method = get_method(job.method)
    if not issubclass(method, GradientMethod):
        return 0
    return method(parse_config(job.method, job.config)).steps


def durations(plan: Plan, rates: Rates, seed: int = 0) -> dict[str, float]:
    """Seconds that each calibration, job and shard of a plan takes on the rates' device, by its id.

    `rates.spread` draws them about their means, each by its id and `seed`. Raises UserError where the rates do not
    know the recipe or a method.
    """
    image = rates.seconds_per_image.get(plan.recipe.name)
    if image is None:
        raise _unknown(rates, "seconds_per_image", "recipe", plan.recipe.name)
    means = {calibration.id: image * calibration_images(plan) for calibration in plan.calibrations}
    for model in plan.models:
        if model.job:
            training = seconds_of(model.job, rates, plan)
            if training is None:
                raise _unknown(rates, "seconds_per_job", "method", model.job.method)
            means[model.id] = training
        means |= {shard.id: image * len(shard.eval_requests) for shard in plan.shards[model.id]}
    if not rates.spread:
        return means
    # A gamma distribution: positive, with this mean and relative standard deviation.
    shape = rates.spread**-2
    return {name: random.Random(f"{seed} {name}").gammavariate(shape, mean / shape) for name, mean in means.items()}


def calibration_images(plan: Plan) -> int:
    """Images that a judge's trial takes."""
    return len(plan.judged) * len(CALIBRATION_SEEDS)


def _unknown(rates: Rates, table: str, what: str, name: str) -> UserError:
    known = ", ".join(sorted(getattr(rates, table))) or "none"
    return UserError(f"rates of {rates.device}: {table} knows no {what} '{name}', only {known}")


def _overlay(estimated: Rates, measured: Rates) -> Rates:
    """Measured rates, and estimates where nothing was measured."""
    tables = {table: {**getattr(estimated, table), **getattr(measured, table)} for table in TABLES}
    # A method's time was measured as a whole, in one of the two tables; an estimate in the other would count it twice.
    for table, other in (("seconds_per_job", "seconds_per_step"), ("seconds_per_step", "seconds_per_job")):
        for method in getattr(measured, table).keys() - getattr(measured, other).keys():
            tables[other].pop(method, None)
    return estimated.model_copy(update={**tables, "base": measured.base, "counts": measured.counts})
