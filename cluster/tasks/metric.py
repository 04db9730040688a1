"""Measuring: a metric of `efface/eval/metric.py` over one whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import RateUse, Task
from efface.errors import JobFailure
from efface.files import content_id, write_json

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.workers.worker import Worker

NUMBERS = "numbers.json"
"""The output: the metric's numbers by name."""


@dataclass(frozen=True)
class MetricTask(Task):
    """One metric of one model that a job makes."""

    kind = "metric"

    model: Model
    name: str
    """Of the metric."""
    judged_by: tuple[str, ...] = ()
    """Of a metric that judges images: the ids of recipe and calibration, and the metric's version."""

    @cached_property
    def id(self) -> str:
        return content_id([self.model.id, "metric", self.name, *self.judged_by])

    @cached_property
    def requires(self) -> tuple[str, ...]:
        return (self.model.folder, *self.judged_by[1:2])

    def run(self, worker: Worker) -> None:
        worker.set_resident(None)
        numbers = dict(self._measured(worker))
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise JobFailure(f"metric '{self.name}': {name} is {number}, should be a finite number")
        path = worker.folder.output(self, NUMBERS)
        write_json(path, numbers)
        worker.finish(self, [path], metric=self.name, numbers=numbers)

    def _measured(self, worker: Worker) -> Mapping[str, float]:
        from efface.eval.metric import METRICS, JudgedContext

        metric, delta = METRICS.get(self.name), worker.folder.read_delta(self.model)
        if not isinstance(metric, type):
            return metric(worker.base, delta)
        concept_set = worker.context.concept_set
        forgotten = tuple(map(concept_set.find, self.model.job.concepts if self.model.job else ()))
        context = JudgedContext(worker.recipe, concept_set, forgotten, worker.judges()[0], worker.context.judged)
        return metric()(worker.base, delta, context)

    @property
    def resident(self) -> None:
        return None

    @property
    def stage(self) -> str:
        return f"metric {self.name}"

    def describe(self) -> str:
        return f"metric {self.name} of {self.model.describe()}"

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        return (RateUse("seconds_per_task", f"{self.kind} {self.name}", 1),)

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.id}"
