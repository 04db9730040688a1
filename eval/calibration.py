"""A judge before its verdicts count: what it says of images of the unedited base, where the right answer is known.

Images of every concept are made from its direct prompts, and the judge looks for every concept in every image. It
should find a concept in the concept's own images (recall) and not in those of the others (specificity). For a judge
that needs thresholds (CLIP), one per concept is fitted first, on every other seed; the accuracy is always measured on
the seeds between them.

An image may rightly show another concept too (a wedding at sunset), which counts against the specificity: the prompts
should not name two concepts of the set at once.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet, prompt_of
from efface.config_files import StrictModel, read_config
from efface.errors import UserError
from efface.eval.image_errors import IMAGE_ERRORS, ImageError, counted, image_errors, verdicts
from efface.eval.judge import Judge, ThresholdJudge
from efface.files import as_path, write_json
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampler import ImageRequest, sample

Scores = NDArray[np.float64]


class Accuracy(StrictModel):
    """How a judge does on one concept; a rate is None where it had no image to be measured on."""

    recall: float | None = Field(ge=0, le=1, description="share of the concept's own images where it is found")
    specificity: float | None = Field(ge=0, le=1, description="share of other concepts' images where it is not found")
    own: int = Field(ge=0, description="images of the concept with a verdict")
    others: int = Field(ge=0, description="images of other concepts with a verdict")
    unreadable: int = Field(ge=0, description="answers that could not be read, and images that are no evidence")


class Calibration(StrictModel):
    """What `calibrate` found, part of the results; `thresholds` is empty for a judge that needs none."""

    judge: str
    weights: str = Field(description="SHA-256 of the judge's weights")
    judge_version: str = Field(description="of the judge with these thresholds")
    base_id: str
    recipe_id: str
    prompts_sha256: str
    seeds: tuple[int, ...]
    thresholds: dict[str, float]
    accuracy: dict[str, Accuracy]
    broken: dict[ImageError, int] = Field({}, description="images that are no evidence, by their error")

    def save(self, path: str | Path) -> None:
        write_json(as_path(path), self.model_dump(mode="json"))


def calibrate(
    judge: Judge,
    base: Base,
    recipe: Recipe,
    concept_set: ConceptSet,
    prompt_set: PromptSet,
    concepts: Sequence[Concept],
    seeds: Sequence[int],
    prompts_per_concept: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[Judge, Calibration]:
    """The judge, with thresholds where it takes some, and its calibration on images of `base` (no delta
    swapped in).

    Raises UserError for fewer than two concepts or seeds, or a concept the judge does not know.
    """
    if len(concepts) < 2 or len(set(seeds)) < 2:
        raise UserError(
            f"judge '{judge.name}' cannot be calibrated on {len(concepts)} concepts and {len(set(seeds))} seeds, "
            "should be at least two of each"
        )
    if not isinstance(judge, ThresholdJudge):
        judge.check(concepts)
    rows = [
        (c, seed, text)
        for seed in dict.fromkeys(seeds)
        for c, concept in enumerate(concepts)
        for text in _own_prompts(prompt_set, concept_set, concept)[:prompts_per_concept]
    ]
    not_finite: set[int] = set()
    images = sample(base, recipe, [ImageRequest(text, seed) for _, seed, text in rows], on_batch, not_finite.add)
    errors = image_errors(images, not_finite)
    sound = np.array([error is None for error in errors])
    owner = np.array([c for c, _, _ in rows])
    order = {seed: i for i, seed in enumerate(dict.fromkeys(seeds))}
    fitting = np.array([order[seed] % 2 == 0 for _, seed, _ in rows])
    thresholds: dict[str, float] = {}
    if isinstance(judge, ThresholdJudge):
        fitted = fitting & sound
        _check_whole(judge, owner[fitted], concepts, errors)
        scores = np.array([judge.scores(images[fitted], [concept] * int(fitted.sum())) for concept in concepts])
        thresholds = {
            concept.name: best_threshold(scores[c][owner[fitted] == c], scores[c][owner[fitted] != c])
            for c, concept in enumerate(concepts)
        }
        judge = judge.calibrated(thresholds)
    measured = np.flatnonzero(~fitting)
    accuracy = _accuracy(judge, images[measured], owner[measured], concepts, [errors[i] for i in measured])
    return judge, Calibration(
        judge=judge.name,
        weights=_weights(judge),
        judge_version=judge.version,
        base_id=base.fingerprint,
        recipe_id=recipe.id,
        prompts_sha256=prompt_set.sha256,
        seeds=tuple(dict.fromkeys(seeds)),
        thresholds=thresholds,
        accuracy=accuracy,
        broken={error: errors.count(error) for error in IMAGE_ERRORS if error in errors},
    )


def _check_whole(
    judge: Judge, owner: NDArray[np.int64], concepts: Sequence[Concept], errors: Sequence[ImageError | None]
) -> None:
    """Raises UserError where a concept has no image to fit a threshold on. owner: (N,), of the whole images."""
    for c, concept in enumerate(concepts):
        if c not in owner or (owner == c).all():
            broken: dict[ImageError, int] = {error: errors.count(error) for error in IMAGE_ERRORS if error in errors}
            raise UserError(
                f"judge '{judge.name}' cannot be calibrated on '{concept.name}': of the base's images of it, or of the "
                f"others, none is whole; {counted(broken)}"
            )


def _own_prompts(prompt_set: PromptSet, concept_set: ConceptSet, concept: Concept) -> list[str]:
    """The direct prompts of a concept; a neighbour without a row of its own has the one that names it."""
    own = [prompt.text for prompt in prompt_set.axis("forget", concept_set, concept)]
    return own or [prompt_of(concept.phrase)]


def best_threshold(own: Scores, others: Scores) -> float:
    """The threshold of the highest (recall + specificity) / 2, a score at or above it counting as present.

    own, others: scores (n,) and (m,), n and m >= 1, of images with and without the concept. Of equally good
    cuts the one between the two scores furthest apart; the threshold lies midway between them.
    """
    values = np.unique(np.concatenate([own, others]))
    if len(values) == 1:
        return float(values[0])
    cuts = (values[1:] + values[:-1]) / 2
    recall = (own[None, :] >= cuts[:, None]).mean(axis=1)
    specificity = (others[None, :] < cuts[:, None]).mean(axis=1)
    balanced = recall + specificity
    gaps = np.where(np.isclose(balanced, balanced.max()), np.diff(values), -1.0)
    return float(cuts[gaps.argmax()])


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
    if isinstance(judge, ThresholdJudge):
        judge = judge.calibrated(calibration.thresholds)
    if judge.version != calibration.judge_version:
        raise UserError(f"judge '{judge.name}' has other settings than when it was calibrated, calibrate it again")
    return judge


def mean_accuracy(accuracy: Mapping[str, Accuracy]) -> float | None:
    """Mean over concepts of (recall + specificity) / 2; None where no concept has both."""
    balanced = [
        (a.recall + a.specificity) / 2 for a in accuracy.values() if a.recall is not None and a.specificity is not None
    ]
    return sum(balanced) / len(balanced) if balanced else None


def _accuracy(
    judge: Judge,
    images: np.ndarray,
    owner: NDArray[np.int64],
    concepts: Sequence[Concept],
    errors: Sequence[ImageError | None],
) -> dict[str, Accuracy]:
    """owner: (N,), which of `concepts` each image was made for."""
    result = {}
    for c, concept in enumerate(concepts):
        found = verdicts(judge, images, [concept] * len(images), errors)
        own = [v.present for v, o in zip(found, owner, strict=True) if o == c and v.present is not None]
        others = [v.present for v, o in zip(found, owner, strict=True) if o != c and v.present is not None]
        result[concept.name] = Accuracy(
            recall=sum(own) / len(own) if own else None,
            specificity=1 - sum(others) / len(others) if others else None,
            own=len(own),
            others=len(others),
            unreadable=len(found) - len(own) - len(others),
        )
    return result


def _weights(judge: Judge) -> str:
    return str(getattr(judge, "weights", judge.version))
