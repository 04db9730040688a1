"""What a training takes by counting: operations of its steps and of the images before them, and the bytes it leaves.

Counted on torch's meta device from what the method states about itself (`Method.cost`), so that a method of which no
rate is known, somebody else's too, has hours like any other.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from efface.cluster.tasks.task import CountedCost
from efface.models.base import BaseSpec
from efface.models.files.model_files import NotCached
from efface.models.shapes import model_shapes
from efface.train.cost.flops import Flops, image_flops, step_flops, summed, trained_weights
from efface.train.job import Job
from efface.train.method import GradientMethod, get_method, parse_config

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan


@dataclass(frozen=True)
class Counted:
    """Of one config of a method."""

    step_flops: Flops
    concept_flops: Flops
    """Before the first step, for each concept to forget."""
    set_concept_flops: Flops
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
    share = len(plan.concept_set.all) / max(1, sharing)
    parts = ((steps, found.step_flops), (concepts, found.concept_flops), (share, found.set_concept_flops))
    return CountedCost(summed(parts), found.delta_bytes)


@lru_cache(maxsize=256)
def _counted(method_name: str, config: str, base: BaseSpec) -> Counted:
    shapes = model_shapes(base)
    method = get_method(method_name)(parse_config(method_name, json.loads(config)))
    delta_bytes = 4 * sum(parameter.numel() for parameter in trained_weights(method, shapes)[1].values())
    if not isinstance(method, GradientMethod):
        return Counted({}, {}, {}, delta_bytes)
    images = method.cost(shapes).images
    each = image_flops(images, shapes) if images else {}
    return Counted(
        step_flops={method.config.precision: step_flops(method, shapes)},
        concept_flops=summed([(images.per_concept if images else 0, each)]),
        set_concept_flops=summed([(images.per_set_concept if images else 0, each)]),
        delta_bytes=delta_bytes,
    )
