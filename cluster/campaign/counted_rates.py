"""What a job takes by counting: operations of its steps and of the images before them, and the bytes it leaves.

Counted on torch's meta device from what the method states about itself (`Method.cost`), so that a method of which no
rate is known, somebody else's too, has hours like any other.
"""

import json
from dataclasses import dataclass
from functools import lru_cache

from efface.cluster.campaign.plan import Plan
from efface.models.activations import Precision
from efface.models.base import BaseSpec
from efface.models.model_files import NotCached
from efface.models.shapes import model_shapes
from efface.train.cost.flops import image_flops, step_flops, trained_weights
from efface.train.job import Job
from efface.train.method import GradientMethod, get_method, parse_config


@dataclass(frozen=True)
class Counted:
    """Of one config of a method."""

    precision: Precision
    step_flops: float
    concept_flops: float
    """Before the first step, for each concept to forget."""
    set_concept_flops: float
    """For each concept of the concept set, once for all jobs of the config."""
    delta_bytes: int


def counted(job: Job, base: BaseSpec) -> Counted | None:
    """None where the base's shapes are not on this machine."""
    try:
        return _counted(job.method, json.dumps(job.config, sort_keys=True), base)
    except NotCached:
        return None


def job_flops(job: Job, plan: Plan, steps: int, concepts: int) -> tuple[float, Precision] | None:
    """Operations of a job of the plan that trains on so many `concepts`, and their precision; None as for `counted`.

    What jobs of one config share is divided among those in the plan.
    """
    found = counted(job, plan.base)
    if found is None:
        return None
    sharing = sum((other.method, other.config) == (job.method, job.config) for other in _jobs(plan))
    shared = found.set_concept_flops * len(plan.concept_set.all) / max(1, sharing)
    return steps * found.step_flops + concepts * found.concept_flops + shared, found.precision


def _jobs(plan: Plan) -> list[Job]:
    return [model.job for model in plan.jobs if model.job]


@lru_cache(maxsize=256)
def _counted(method_name: str, config: str, base: BaseSpec) -> Counted:
    shapes = model_shapes(base)
    method = get_method(method_name)(parse_config(method_name, json.loads(config)))
    delta_bytes = 4 * sum(parameter.numel() for parameter in trained_weights(method, shapes)[1].values())
    if not isinstance(method, GradientMethod):
        return Counted("fp32", 0.0, 0.0, 0.0, delta_bytes)
    images = method.cost(shapes).images
    each = image_flops(images, shapes) if images else 0.0
    return Counted(
        precision=method.config.precision,
        step_flops=step_flops(method, shapes),
        concept_flops=each * images.per_concept if images else 0.0,
        set_concept_flops=each * images.per_set_concept if images else 0.0,
        delta_bytes=delta_bytes,
    )
