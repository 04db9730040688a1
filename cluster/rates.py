"""How long work takes on one kind of device: a file of rates, measured or estimated, and what a plan comes to by it."""

import random
from pathlib import Path
from typing import Annotated

from pydantic import Field

from efface.cluster.plan import Plan
from efface.cluster.worker import CALIBRATION_SEEDS
from efface.errors import UserError
from efface.strict import Strict, find_config, read_strict

Seconds = Annotated[float, Field(gt=0)]


class Rates(Strict):
    """A YAML or JSON file, or one shipped in `configs/rates/`."""

    device: str
    seconds_per_image: dict[str, Seconds] = Field(description="by recipe: to sample an image and judge it")
    seconds_per_job: dict[str, Seconds] = Field(description="by method: to train one model")
    load_seconds: float = Field(0.0, ge=0, description="to put a model's delta in the place of another's")
    start_seconds: float = Field(0.0, ge=0, description="until a new worker has its base and judges loaded")
    spread: float = Field(0.0, ge=0, lt=1, description="relative standard deviation between pieces of one kind")


def read_rates(name_or_path: str | Path) -> Rates:
    """The rates of that name or in that file. Raises UserError."""
    return read_strict(Rates, find_config("rates", name_or_path))


def durations(plan: Plan, rates: Rates, seed: int = 0) -> dict[str, float]:
    """Seconds that each calibration, job and shard of a plan takes on the rates' device, by its id.

    `rates.spread` draws them about their means, each by its id and `seed`. Raises UserError where the rates do not
    know the recipe or a method.
    """
    image = _known(rates, "seconds_per_image", plan.recipe.name, "recipe")
    trial = image * len(plan.judged) * len(CALIBRATION_SEEDS)
    means = {calibration.id: trial for calibration in plan.calibrations}
    for model in plan.models:
        if model.job:
            means[model.id] = _known(rates, "seconds_per_job", model.job.method, "method")
        means |= {shard.id: image * len(shard.questions) for shard in plan.shards[model.id]}
    if not rates.spread:
        return means
    # A gamma distribution: positive, with this mean and relative standard deviation.
    shape = rates.spread**-2
    return {name: random.Random(f"{seed} {name}").gammavariate(shape, mean / shape) for name, mean in means.items()}


def _known(rates: Rates, table: str, name: str, what: str) -> float:
    values: dict[str, float] = getattr(rates, table)
    if name not in values:
        raise UserError(f"rates of {rates.device}: {table} knows no {what} '{name}', only {', '.join(sorted(values))}")
    return values[name]
