"""Calibrating a judge: it is tried on images of the unedited base before its verdicts count.

A judge that needs few images is calibrated by one task. Of many images each part is a task of its own, by any worker,
and the calibration only reads what the judge answered in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from efface.cluster.tasks.task import DamagedInput, Priority, RateUse, Task
from efface.eval.calibration.calibration_requests import CalibrationRequest
from efface.files import content_id, slug, write_json

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.workers.worker import Worker
    from efface.eval.calibration.calibration import JudgeAnswers

CALIBRATION, ANSWERS = "calibration.json", "answers.json"
"""The outputs: thresholds and accuracy; what the judge said of the images of a part."""

PART_IMAGES = 64
"""Images of a part; a calibration of no more has none."""


@dataclass(frozen=True)
class CalibrationPart(Task):
    """A part of the images by which one judge is calibrated."""

    kind = "calibration-part"
    unit = "image"
    priority = Priority.FIRST
    teaches_rates = False  # the first one also loads the judge
    model = None

    judge: str
    """Its name or YAML file."""
    index: int
    requests: tuple[CalibrationRequest, ...]
    id: str

    def run(self, worker: Worker) -> None:
        answers = _answers(self, worker)
        path = worker.folder.output(self, ANSWERS)
        write_json(path, answers.model_dump(mode="json"))
        worker.finish(self, [path])

    @property
    def size(self) -> int:
        return len(self.requests)

    @property
    def provides(self) -> str:
        return self.id

    def describe(self) -> str:
        return f"calibrating judge {self.judge}, part {self.index}"

    def failure_message(self, reason: str) -> str:
        return _failure_message(self.judge, reason)

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        return (RateUse("seconds_per_image", plan.recipe.name, len(self.requests)),)

    @property
    def folder(self) -> str:
        return "calibration/parts"

    @property
    def stem(self) -> str:
        return f"{slug(Path(self.judge).stem)}-{self.index:05d}-{self.id}"


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
    requests: tuple[CalibrationRequest, ...] = ()
    """The images that it makes itself."""
    parts: tuple[CalibrationPart, ...] = ()
    """The tasks that make the others, without what they are requested."""

    def run(self, worker: Worker) -> None:
        from efface.config_files import read_config
        from efface.eval.calibration.calibration import JudgeAnswers, calibrate
        from efface.eval.judging.image_errors import counted

        found = [_answers(self, worker)] if self.requests else []
        for part in self.parts:
            path = worker.folder.output(part, ANSWERS)
            if not worker.folder.is_intact(part):
                raise DamagedInput(path, worker.folder.record_file(part))
            found.append(read_config(JudgeAnswers, path))
        judge, context = worker.uncalibrated(self.judge), worker.context
        _, result = calibrate(
            judge,
            found,
            context.judged,
            base_id=worker.base.fingerprint,
            recipe_id=context.recipe.id,
            prompts_sha256=context.prompt_set.sha256,
        )
        path = worker.folder.output(self, CALIBRATION)
        result.save(path)
        worker.finish(self, [path], note=counted(result.broken) if result.broken else "")

    @property
    def requires(self) -> tuple[str, ...]:
        return tuple(part.id for part in self.parts)

    @property
    def provides(self) -> str:
        return self.id

    def describe(self) -> str:
        return f"calibrating judge {self.judge}"

    def failure_message(self, reason: str) -> str:
        return _failure_message(self.judge, reason)

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        return (RateUse("seconds_per_image", plan.recipe.name, len(self.requests)),)

    @property
    def folder(self) -> str:
        return "calibration"

    @property
    def stem(self) -> str:
        return f"{slug(Path(self.judge).stem)}-{self.id}"


def calibration_tasks(
    judge: str, requests: Sequence[CalibrationRequest], made_by: Sequence[str]
) -> tuple[tuple[CalibrationPart, ...], CalibrationTask]:
    """The parts of a judge's calibration, which come first, and the calibration; `made_by`: what else decides them."""

    def id(of: Sequence[CalibrationRequest]) -> str:
        return content_id([*made_by, [[r.prompt, r.seed, list(r.asked), r.fitting] for r in of]])

    if len(requests) <= PART_IMAGES:
        return (), CalibrationTask(judge, id(requests), tuple(requests))
    cut = (tuple(requests[start : start + PART_IMAGES]) for start in range(0, len(requests), PART_IMAGES))
    parts = tuple(CalibrationPart(judge, index, part, id(part)) for index, part in enumerate(cut))
    return parts, CalibrationTask(judge, id(requests), (), tuple(replace(part, requests=()) for part in parts))


def _answers(task: CalibrationPart | CalibrationTask, worker: Worker) -> JudgeAnswers:
    """Of the images that a task makes itself."""
    from efface.eval.calibration.calibration import answer_requests

    worker.set_resident(None)
    judge, requests = worker.uncalibrated(task.judge), task.requests
    with worker.counting(task, len(requests)) as on_batch:
        return answer_requests(judge, worker.base, worker.recipe, worker.context.concept_set, requests, on_batch)


def _failure_message(judge: str, reason: str) -> str:
    return f"judge '{judge}' cannot be calibrated, so nothing can be judged: {reason}"
