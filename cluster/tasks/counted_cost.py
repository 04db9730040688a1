"""What a training takes by counting: operations of its steps and of the images before them, and the bytes it leaves.

Counted on torch's meta device from what the method states about itself (`Method.cost`), so that a method of which no
rate is known, somebody else's too, has hours like any other.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from efface.cluster.tasks.task import CountedCost
from efface.models.activation_cost import Precision
from efface.models.base import BaseSpec
from efface.models.model_files import NotCached
from efface.models.shapes import model_shapes
from efface.train.cost.flops import image_flops, step_flops, trained_weights
from efface.train.job import Job
from efface.train.method import GradientMethod, get_method, parse_config

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan


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


def counted_cost(job: Job, plan: "Plan", steps: int, concepts: int) -> CountedCost | None:
    """Of a job of the plan that trains on so many `concepts`; None as for `counted`.

    What jobs of one config share is divided among those in the plan.
    """
    found = counted(job, plan.base)
    if found is None:
        return None
    sharing = plan.jobs_by_config[job.method, json.dumps(job.config, sort_keys=True)]
    shared = found.set_concept_flops * len(plan.concept_set.all) / max(1, sharing)
    flops = steps * found.step_flops + concepts * found.concept_flops + shared
    return CountedCost(flops, found.precision, found.delta_bytes)


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
