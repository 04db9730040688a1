"""Calibrating a judge: it is tried on images of the unedited base before its verdicts count."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from efface.cluster.tasks.task import Priority, RateUse, Task
from efface.files import slug

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.workers.worker import Worker

CALIBRATION_SEEDS = (10_000, 10_001)
"""Image seeds of a calibration, apart from those of a campaign: one to fit on, one to measure on."""

CALIBRATION = "calibration.json"
"""The output: thresholds and accuracy."""


@dataclass(frozen=True)
class CalibrationTask(Task):
    """Of one judge; without it nothing can be judged."""

    kind = "calibration"
    unit = "judge"
    priority = Priority.FIRST
    teaches_rates = False  # it also loads the judge
    model = None

    judge: str
    """Its name or YAML file."""
    id: str

    def run(self, worker: Worker) -> None:
        from efface.eval.calibration import calibrate
        from efface.eval.image_errors import counted
        from efface.eval.judge_spec import load_judge

        worker.set_resident(None)
        context = worker.context
        _, result = calibrate(
            load_judge(self.judge, worker.device),
            worker.base,
            worker.recipe,
            context.concept_set,
            context.prompt_set,
            context.judged,
            CALIBRATION_SEEDS,
        )
        path = worker.folder.output(self, CALIBRATION)
        result.save(path)
        worker.finish(self, [path], note=counted(result.broken) if result.broken else "")

    @property
    def provides(self) -> str:
        return self.id

    def describe(self) -> str:
        return f"calibrating judge {self.judge}"

    def failure_message(self, reason: str) -> str:
        return f"judge '{self.judge}' cannot be calibrated, so nothing can be judged: {reason}"

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        return (RateUse("seconds_per_image", plan.recipe.name, len(plan.judged) * len(CALIBRATION_SEEDS)),)

    @property
    def folder(self) -> str:
        return "calibration"

    @property
    def stem(self) -> str:
        return f"{slug(Path(self.judge).stem)}-{self.id}"
