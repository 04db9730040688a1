"""Training: a job makes a model of the base, and leaves a delta."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import CountedCost, Priority, RateUse, Task
from efface.eval.weight_change_values import WeightChange
from efface.train.training_metrics import TrainingMetrics

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.campaign.spec import Limits
    from efface.cluster.workers.worker import Worker
    from efface.train.job import Job
    from efface.train.trainer.options import TrainingOptions


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingTask(Task):
    """Of one model. In a chain of requests it waits for the model that it continues."""

    kind = "training"
    unit = "job"
    priority = Priority.LONG

    model: Model
    after: tuple[str, ...] = ()
    """Products that should be there before anything is trained, though the training does not use them."""

    @cached_property
    def id(self) -> str:
        return self.model.id

    @cached_property
    def requires(self) -> tuple[str, ...]:
        return (self.model.predecessor, *self.after) if self.model.predecessor else self.after

    @property
    def job(self) -> Job:
        assert self.model.job, "the base itself is not trained"
        return self.model.job

    def run(self, worker: Worker) -> None:
        from efface.eval.metrics.weight_change import weight_change
        from efface.train.run_job import run_job

        worker.set_resident(None)
        folder, model = worker.folder, self.model
        delta, metrics = run_job(
            self.job,
            worker.base,
            worker.context.concept_set,
            lambda done, steps, loss: worker.on_step(self, done, steps, loss),
            cache=folder.cache,
            parent=folder.read_parent_delta(model),
            checkpoint=folder.checkpoint(model),
            save_steps=worker.context.checkpoint_steps,
            training_options=self._options(worker),
            reduce_micro_batch=worker.smaller_batch,
        )
        if worker.rank:
            return
        attention = metrics.attention
        if attention and attention.requested not in ("auto", attention.used):
            logger.warning(
                "attention by %s is not available on this worker, %s was used",
                attention.requested,
                attention.used,
            )
        folder.write_delta(model, delta)
        worker.finish(
            self,
            [folder.delta(model)],
            **training_facts(model, metrics, weight_change(worker.base, delta)),
        )
        folder.checkpoint(model).unlink(missing_ok=True)

    def _options(self, worker: Worker) -> TrainingOptions:
        from efface.train.trainer.options import TrainingOptions

        fields = dict(worker.context.training_options)
        if fields.get("tracker"):
            fields["tracker_folder"] = worker.folder.curves(self.model)
        return TrainingOptions.model_validate(fields)

    @property
    def provides(self) -> str:
        return self.model.folder

    @property
    def process_group(self) -> bool:
        return not self.model.closed_form

    @cached_property
    def pack_key(self) -> str | None:
        from efface.train.job_packs import pack_key

        return None if self.model.closed_form else pack_key(self.job)

    def time_limit(self, limits: Limits) -> float | None:
        return limits.job_seconds

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        return (*training_rates(self.job), RateUse("bytes_per_delta", self.job.method, 1))

    def counted_cost(self, plan: Plan) -> CountedCost | None:
        from efface.cluster.tasks.counted_cost import counted_cost
        from efface.train.cost.flops import summed
        from efface.train.foreign_delta import is_foreign

        if is_foreign(self.job):
            return None
        costs = [
            counted_cost(one, plan, steps_of(one), trained_concepts(one, steps_of(one))) for one in runs_of(self.job)
        ]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return None
        return CountedCost(summed((1, cost.flops) for cost in known), max(cost.bytes for cost in known))

    @property
    def folder(self) -> str:
        return f"jobs/{self.model.folder}"

    @property
    def stem(self) -> str:
        return "record"

    @property
    def log(self) -> str:
        return "log.txt"


class TrainingResult(BaseModel):
    """What the record of a training says beside its outputs."""

    label: str
    job: dict[str, Any]
    """The JSON of the `Job`."""
    metrics: TrainingMetrics
    weight_change: WeightChange


def training_facts(model: Model, metrics: TrainingMetrics, change: WeightChange) -> dict[str, Any]:
    """The JSON of a model's `TrainingResult`, for its record."""
    assert model.job
    job = model.job.model_dump(mode="json")
    return TrainingResult(label=model.label, job=job, metrics=metrics, weight_change=change).model_dump(mode="json")


def training_rates(job: Job) -> tuple[RateUse, ...]:
    """The rates of the seconds that a job takes: its steps, and what comes before the first, or the whole of it."""
    uses = []
    for one in runs_of(job):
        steps = steps_of(one)
        if steps:
            uses.append(RateUse("seconds_per_step", one.method, steps))
        uses.append(RateUse("seconds_per_job", one.method, trained_concepts(one, steps)))
    return tuple(uses)


def runs_of(job: Job) -> list[Job]:
    """The job itself, or, of one that is made of edits, each of them as a job."""
    from efface.train.composed_method import ComposedMethod
    from efface.train.foreign_delta import is_foreign
    from efface.train.method import METHODS, get_method, parse_config

    if job.method not in METHODS.names() or is_foreign(job) or not issubclass(get_method(job.method), ComposedMethod):
        return [job]
    method = get_method(job.method)(parse_config(job.method, job.config))
    assert isinstance(method, ComposedMethod)
    runs = method.runs(len(job.concepts), job.strategy == "continual")
    return [
        job.model_copy(update={"method": edit.method, "config": edit.config, "concepts": job.concepts[-count:]})
        for edit, count in runs
    ]


def trained_concepts(job: Job, steps: int) -> int:
    """A request of a chain is trained on its last concept alone; a closed form is solved for all so far."""
    return 1 if job.strategy == "continual" and steps else len(job.concepts)


def steps_of(job: Job) -> int:
    """The optimiser steps that a job will take; 0 for a closed form, and for a method that is not known here.

    Deltas made elsewhere may name such a method, or be labelled by a known one; they are judged and not trained.
    """
    from efface.train import edit_runner
    from efface.train.foreign_delta import is_foreign
    from efface.train.method import METHODS, get_method, parse_config

    if job.method not in METHODS.names() or is_foreign(job):
        return 0
    method = get_method(job.method)(parse_config(job.method, job.config))
    return edit_runner.steps_of(method, len(job.concepts), job.strategy == "continual")
