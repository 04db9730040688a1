"""A judge before its verdicts count: what it says of images of the unedited base, where the right answer is known.

It should find a concept in the images made for it (recall) and not in those made for others (specificity). Which images
those are says `calibration_requests.py`. For a judge that needs thresholds (CLIP) one per concept is fitted first, on
images of their own (`threshold_fit.py`); of a concept with too few, one for all concepts together.

An image may rightly show another concept too (a wedding at sunset), which counts against the specificity: the prompts
should not suggest two concepts of the set at once.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from efface.concepts.concept import Concept, ConceptSet, fold
from efface.config_files import StrictModel, read_config
from efface.errors import UserError
from efface.eval.calibration.calibration_requests import CalibrationRequest
from efface.eval.calibration.judge_accuracy import Accuracy
from efface.eval.calibration.threshold_fit import MIN_IMAGES, best_threshold
from efface.eval.judge import Judge, ThresholdJudge
from efface.eval.judging.image_errors import IMAGE_ERRORS, ImageError, counted, image_errors
from efface.eval.judging.verdicts import verdicts
from efface.files import as_path, write_json
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample

GROUP = 32
"""Images that are judged at once."""


class JudgeAnswer(StrictModel):
    """What a judge says of one image and one concept; both None where there is no verdict.

    present: None too of a judge whose thresholds are not fitted yet, which has only a score.
    """

    concept: str
    own: bool = Field(description="whether the image was made for the concept")
    fitting: bool
    present: bool | None
    score: float | None


class JudgeAnswers(StrictModel):
    """A judge on some images."""

    answers: tuple[JudgeAnswer, ...]
    broken: dict[ImageError, int] = Field({}, description="images that are no evidence, by their error")


class Threshold(StrictModel):
    """A threshold, and on how many images it was fitted."""

    value: float = Field(ge=0, le=1)
    own: int | None = Field(None, ge=1, description="images of the concept; None where it was given, or is not known")
    others: int | None = Field(None, ge=1, description="images of other concepts")
    pooled: bool = Field(
        False, description="whether the images are those of all concepts: of its own there were too few"
    )


class Calibration(StrictModel):
    """What came of a calibration, part of the results; `thresholds` is empty for a judge that needs none."""

    judge: str
    weights: str = Field(description="SHA-256 of the judge's weights")
    judge_version: str = Field(description="of the judge with these thresholds")
    base_id: str
    recipe_id: str
    prompts_sha256: str = Field(description="of the prompt set")
    thresholds: dict[str, Threshold]
    accuracy: dict[str, Accuracy]
    broken: dict[ImageError, int] = Field({}, description="images that are no evidence, by their error")

    @model_validator(mode="before")
    @classmethod
    def _of_a_file_that_counts_no_images(cls, data: Any) -> Any:
        """Calibrations had a list of seeds once, and thresholds without the number of their images."""
        if not isinstance(data, dict) or "seeds" not in data:
            return data
        values = data.get("thresholds", {})
        thresholds = {name: {"value": value} for name, value in values.items()}
        return {key: value for key, value in data.items() if key != "seeds"} | {"thresholds": thresholds}

    @property
    def fitted(self) -> dict[str, float]:
        return {name: threshold.value for name, threshold in self.thresholds.items()}

    def save(self, path: str | Path) -> None:
        write_json(as_path(path), self.model_dump(mode="json"))


def answer_requests(
    judge: Judge,
    base: Base,
    recipe: Recipe,
    concept_set: ConceptSet,
    requests: Sequence[CalibrationRequest],
    on_batch: Callable[[int], None] | None = None,
) -> JudgeAnswers:
    """Make the images with `base` (no delta swapped in) and have them judged. Raises UserError for a concept that the
    judge does not know."""
    if not needs_thresholds(judge):
        requests = [request for request in requests if not request.fitting]
        judge.check([concept_set.find(name) for request in requests for name in request.asked])
    not_finite: set[int] = set()
    wanted = [ImageRequest(request.prompt, request.seed) for request in requests]
    images = sample(base, recipe, wanted, on_batch, not_finite.add)
    errors = image_errors(images, not_finite)
    answers = []
    for start in range(0, len(requests), GROUP):  # an image is repeated for each concept that it is asked for
        group = range(start, min(start + GROUP, len(requests)))
        pairs = [(i, name) for i in group for name in requests[i].asked]
        pictures, concepts = images[[i for i, _ in pairs]], [concept_set.find(name) for _, name in pairs]
        found = _found(judge, pictures, concepts, [errors[i] for i, _ in pairs])
        for (i, name), (present, score) in zip(pairs, found, strict=True):
            own, fitting = name == requests[i].asked[0], requests[i].fitting
            answers.append(JudgeAnswer(concept=name, own=own, fitting=fitting, present=present, score=score))
    return JudgeAnswers(
        answers=tuple(answers), broken={error: errors.count(error) for error in IMAGE_ERRORS if error in errors}
    )


def needs_thresholds(judge: Judge) -> bool:
    return isinstance(judge, ThresholdJudge) and judge.needs_thresholds


def _found(
    judge: Judge, images: np.ndarray, concepts: Sequence[Concept], errors: Sequence[ImageError | None]
) -> list[tuple[bool | None, float | None]]:
    """(present, score) of each image; without `present` where a threshold is still to be fitted."""
    if not (isinstance(judge, ThresholdJudge) and judge.needs_thresholds):
        given = verdicts(judge, images, concepts, errors)
        return [(v.present, None if v.present is None else v.score) for v in given]
    sound = [i for i, error in enumerate(errors) if error is None]
    found: list[tuple[bool | None, float | None]] = [(None, None)] * len(errors)
    scores = judge.scores(images[sound], [concepts[i] for i in sound]) if sound else []
    for i, score in zip(sound, scores, strict=True):
        if np.isfinite(score):
            found[i] = (None, float(score))
    return found


def calibrate(
    judge: Judge,
    parts: Sequence[JudgeAnswers],
    concepts: Sequence[Concept],
    *,
    base_id: str,
    recipe_id: str,
    prompts_sha256: str,
) -> tuple[Judge, Calibration]:
    """The judge, with thresholds where it takes some, and its calibration, from what it answered.

    Raises UserError for fewer than two concepts, or one that has no image to fit a threshold on.
    """
    if len(concepts) < 2:
        raise UserError(
            f"judge '{judge.name}' cannot be calibrated on {len(concepts)} concepts, should be at least two"
        )
    answers = [answer for part in parts for answer in part.answers]
    broken = {error: n for error in IMAGE_ERRORS if (n := sum(part.broken.get(error, 0) for part in parts))}
    thresholds: dict[str, Threshold] = {}
    if isinstance(judge, ThresholdJudge) and judge.needs_thresholds:
        fixed = {fold(name): value for name, value in getattr(judge, "fixed", {}).items()}
        given = {c.name: Threshold(value=fixed[fold(c.name)]) for c in concepts if fold(c.name) in fixed}
        left = [concept for concept in concepts if concept.name not in given]
        thresholds = given | _thresholds(judge.name, [a for a in answers if a.fitting], left, broken)
        judge = judge.calibrated({name: threshold.value for name, threshold in thresholds.items()})
    measured = [answer for answer in answers if not answer.fitting]
    return judge, Calibration(
        judge=judge.name,
        weights=_weights(judge),
        judge_version=judge.version,
        base_id=base_id,
        recipe_id=recipe_id,
        prompts_sha256=prompts_sha256,
        thresholds=thresholds,
        accuracy=_accuracy(measured, concepts, thresholds),
        broken=broken,
    )


def _thresholds(
    judge: str, answers: Sequence[JudgeAnswer], concepts: Sequence[Concept], broken: dict[ImageError, int]
) -> dict[str, Threshold]:
    scores: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for answer in answers:
        if answer.score is not None:
            scores[answer.concept, answer.own].append(answer.score)
    for concept in concepts:
        if not scores[concept.name, True] or not scores[concept.name, False]:
            reason = f"; {counted(broken)}" if broken else ""
            raise UserError(
                f"judge '{judge}' cannot be calibrated on '{concept.name}': of the base's images of it, or of the "
                f"others, none is whole{reason}"
            )

    def fitted(names: Sequence[str]) -> Threshold:
        own, others = ([score for name in names for score in scores[name, mine]] for mine in (True, False))
        value = best_threshold(np.array(own), np.array(others))
        return Threshold(value=value, own=len(own), others=len(others), pooled=len(names) > 1)

    names = [concept.name for concept in concepts]
    few = {name for name in names if min(len(scores[name, True]), len(scores[name, False])) < MIN_IMAGES}
    pooled = fitted(names) if few else None
    return {name: pooled if pooled and name in few else fitted([name]) for name in names}


def _accuracy(
    answers: Sequence[JudgeAnswer], concepts: Sequence[Concept], thresholds: dict[str, Threshold]
) -> dict[str, Accuracy]:
    found: dict[tuple[str, bool], list[bool | None]] = defaultdict(list)
    for answer in answers:
        present = answer.present
        if thresholds and answer.score is not None:
            present = answer.score >= thresholds[answer.concept].value
        found[answer.concept, answer.own].append(present)
    result = {}
    for concept in concepts:
        own, others = ([p for p in found[concept.name, mine] if p is not None] for mine in (True, False))
        unreadable = sum(p is None for mine in (True, False) for p in found[concept.name, mine])
        result[concept.name] = Accuracy.counted(sum(own), len(own), others.count(False), len(others), unreadable)
    return result


def read_calibration(path: str | Path) -> Calibration:
    """A calibration that was saved. Raises UserError where the file is something else."""
    return read_config(Calibration, as_path(path))


def calibrated(judge: Judge, calibration: Calibration) -> Judge:
    """The judge with the thresholds of its calibration. Raises UserError where that was made with another
    judge.
    """
    if calibration.weights != _weights(judge) or calibration.judge != judge.name:
        raise UserError(
            f"judge '{judge.name}' is not the one that was calibrated ('{calibration.judge}', weights "
            f"{calibration.weights[:12]}), calibrate it again"
        )
    if isinstance(judge, ThresholdJudge) and judge.needs_thresholds:
        judge = judge.calibrated(calibration.fitted)
    if judge.version != calibration.judge_version:
        raise UserError(f"judge '{judge.name}' has other settings than when it was calibrated, calibrate it again")
    return judge


def _weights(judge: Judge) -> str:
    return str(getattr(judge, "weights", judge.version))
