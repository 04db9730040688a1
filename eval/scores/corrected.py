"""Scores corrected for a judge that is not always right, beside the plain ones: the Rogan-Gladen estimate of each.

A plain score is the share of verdicts; a corrected one estimates the share of images, from how often the judge was
right on images of the unedited base (`judge_accuracy.py`). It is unbiased there, and so it may lie below 0 or above 1.
Whether the judge is as often right on images of an edited model is not known.

The 95 % intervals count every image for itself and add what the calibration leaves open. They are of the normal
distribution; the prompts are taken as they are, unlike by the intervals of the plain scores.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from efface.concepts.prompts import AXES, TARGET_AXES, Axis
from efface.eval.calibration.judge_accuracy import Accuracy, Z, rogan_gladen, together
from efface.eval.calibration.threshold_fit import MIN_IMAGES
from efface.eval.scores.held_out import split_shown
from efface.eval.scores.scoring import BASE

POOLED = "all concepts"
CORRECTED = (
    "Corrected for the judge's errors (Rogan-Gladen): estimates with 95 % intervals over images and the judge's "
    "calibration, which may lie below 0 or above 1, and which nothing else goes by"
)
"""Said above a table of them."""


@dataclass(frozen=True)
class CorrectedScore:
    """An estimate, and its 95 % interval."""

    score: float
    interval: tuple[float, float]


ByAxis = dict[Axis, CorrectedScore | None]
"""None where the judge says too little of a concept, or the axis was not asked."""


@dataclass(frozen=True)
class CorrectedScores:
    """Of one method and judge, by concept, and in the mean over concepts."""

    concepts: dict[str, ByAxis]
    axes: ByAxis
    rates_of: str
    """Whether the judge's rates are those on each concept, or on all concepts together."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Sum:
    """A weighted sum of corrected shares; its parts by the concept whose rates they were corrected by."""

    value: float = 0.0
    image_variance: float = 0.0
    by_recall: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_specificity: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, weight: float, other: "_Sum") -> None:
        self.value += weight * other.value
        self.image_variance += weight**2 * other.image_variance
        for mine, theirs in (
            (self.by_recall, other.by_recall),
            (self.by_specificity, other.by_specificity),
        ):
            for source, part in theirs.items():
                mine[source] += weight * part

    def estimate(self) -> CorrectedScore:
        parts = (*self.by_recall.values(), *self.by_specificity.values())
        half = Z * sqrt(self.image_variance + sum(part**2 for part in parts))
        return CorrectedScore(self.value, (self.value - half, self.value + half))


def corrected_scores(table: pa.Table, accuracy: Mapping[str, Accuracy]) -> CorrectedScores:
    """Of the rows of one method and judge that are scored (see `split_shown`); accuracy: by asked concept.

    Where some concept has too few images to know the judge's rates on it, the rates are those on all concepts together.
    """
    few = any(a.own < MIN_IMAGES or a.others < MIN_IMAGES for a in accuracy.values())
    pooled = together(accuracy.values()) if few else None
    cells = {cell: _cell(rows, cell[1], accuracy, pooled) for cell, rows in _by_cell(table).items()}
    names = sorted({concept for concept, _ in cells})
    sums = {axis: _mean([cells.get((name, axis)) for name in names]) for axis in AXES}
    return CorrectedScores(
        concepts={name: {axis: _estimate(cells.get((name, axis))) for axis in AXES} for name in names},
        axes={axis: _estimate(sums[axis]) for axis in AXES},
        rates_of=POOLED if few else "each concept",
    )


def corrected_by_method(
    table: pa.Table, accuracy: Mapping[str, Accuracy], labels: Iterable[str]
) -> dict[str, CorrectedScores]:
    """Of each label and of the base, by the rows of one judge; without those of whose concepts it was not measured."""
    found = {}
    for label in dict.fromkeys((*labels, BASE)):
        rows, _ = split_shown(table.filter(pc.equal(table["method"], label)))
        if rows.num_rows and accuracy.keys() >= set(rows["asked_concept"].unique().to_pylist()):
            found[label] = corrected_scores(rows, accuracy)
    return found


def axes_of(corrected: CorrectedScores) -> list[str]:
    """Of each axis its estimate and interval, as tables show them; empty where there is none."""
    return [
        "" if of is None else "{:.3f} ({:.3f} to {:.3f})".format(of.score, *of.interval)
        for of in (corrected.axes[axis] for axis in AXES)
    ]


def _by_cell(table: pa.Table) -> dict[tuple[str, Axis], list[tuple[str, str, bool]]]:
    """(model, asked concept, present) of the verdicts by concept and axis."""
    cells: dict[tuple[str, Axis], list[tuple[str, str, bool]]] = defaultdict(list)
    columns = ("concept", "axis", "model_id", "asked_concept", "present")
    for concept, axis, model, asked, present in zip(*(table[name].to_pylist() for name in columns), strict=True):
        if present is not None:
            cells[concept, axis].append((model, asked, present))
    return cells


def _cell(
    rows: Iterable[tuple[str, str, bool]], axis: Axis, accuracy: Mapping[str, Accuracy], pooled: Accuracy | None
) -> _Sum | None:
    """One axis of one concept; models weigh the same, as in the plain score."""
    by_model: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for model, asked, present in rows:
        by_model[model][asked].append(present)
    total = _Sum()
    for by_asked in by_model.values():
        images = sum(map(len, by_asked.values()))
        for asked, found in by_asked.items():
            share = rogan_gladen(sum(found) / len(found), len(found), pooled or accuracy[asked])
            if share is None:
                return None
            source = POOLED if pooled else asked
            part = _Sum(share.value, share.image_variance, {source: share.by_recall}, {source: share.by_specificity})
            total.add(len(found) / images / len(by_model), part)
    if axis not in TARGET_AXES:
        return total
    absent = _Sum(1.0)
    absent.add(-1.0, total)
    return absent


def _mean(sums: list[_Sum | None]) -> _Sum | None:
    """Over concepts; None where one is not known."""
    if not sums or any(each is None for each in sums):
        return None
    mean = _Sum()
    for each in sums:
        assert each is not None
        mean.add(1 / len(sums), each)
    return mean


def _estimate(each: _Sum | None) -> CorrectedScore | None:
    return each.estimate() if each else None
