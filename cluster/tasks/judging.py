"""Judging: some images of one model are made, and judges answer everything that is asked of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import RateUse, Task
from efface.eval.judging.eval_requests import EvalRequest

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.campaign.spec import Limits
    from efface.cluster.workers.worker import Worker

VERDICTS, IMAGES = "verdicts.parquet", "images.parquet"
"""The outputs: rows of the image table, and the images behind them as PNG."""


@dataclass(frozen=True)
class Shard(Task):
    """A part of a model's images. It waits for the model, for the calibration of every judge, and for prompts that have
    to be found."""

    kind = "judging"
    unit = "image"

    model: Model
    index: int
    eval_requests: tuple[EvalRequest, ...]
    """With slots where a prompt has to be found."""
    id: str
    requires: tuple[str, ...] = ()

    def run(self, worker: Worker) -> None:
        from efface.eval.attacking.found_prompts import fill
        from efface.eval.judging.evaluate import evaluate
        from efface.eval.judging.image_errors import broken_images, counted
        from efface.eval.judging.image_table import write_table
        from efface.models.sampling.sampler import SamplingCost

        requests = fill(self.eval_requests, worker.found_prompts)
        cost = SamplingCost()
        worker.set_resident(self.model)
        judges = worker.judges()
        with worker.counting(self, len(requests)) as on_batch:
            verdicts, images = evaluate(
                worker.base,
                worker.recipe,
                requests,
                judges,
                worker.context.concept_set,
                model_id=self.model.id,
                method=self.model.label,
                on_batch=on_batch,
                cost=cost,
            )
        outputs = [worker.folder.output(self, name) for name in (VERDICTS, IMAGES)]
        for path, table in zip(outputs, (verdicts, images), strict=True):
            write_table(path, table)
        broken = broken_images(verdicts)
        facts = {"sampling": asdict(cost), **({"broken": broken} if broken else {})}
        worker.finish(self, outputs, note=counted(broken) if broken else "", images=len(requests), **facts)

    @property
    def size(self) -> int:
        return max(1, len(self.eval_requests))

    @property
    def stage(self) -> str:
        return f"judging, shard {self.index}"

    def describe(self) -> str:
        return f"judging {self.model.describe()}, shard {self.index}"

    def time_limit(self, limits: Limits) -> float | None:
        return limits.shard_seconds

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        recipe, images = plan.recipe.name, len(self.eval_requests)
        return RateUse("seconds_per_image", recipe, images), RateUse("bytes_per_image", recipe, images)

    @property
    def folder(self) -> str:
        return f"evaluations/{self.model.folder}"

    @property
    def stem(self) -> str:
        return f"{self.index:05d}-{self.id}"


def shard_requires(model: Model, calibrations: tuple[str, ...], checks: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What all shards of a model require: the model, and the calibrations and checks of prompts with these ids."""
    return (model.folder, *calibrations, *checks)
