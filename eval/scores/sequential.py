"""When to stop drawing images for an axis: as soon as its interval answers what is asked of it.

What is asked is whether a score lies above a threshold, or which of two methods scores higher. After each look at the
images so far, an axis is settled where its interval leaves the threshold out, or that of the difference leaves zero
out. One who looks K times at intervals of 95 % is misled more often than once in twenty; so each look has intervals of
level 1 - 0.05 / K, and by Bonferroni's inequality all looks together err no more often than one. Looks double the
images, so that there are few. `benchmarks/sequential.py` counts wrong answers where the truth is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from efface.concepts.prompts import AXES, Axis
from efface.errors import UserError
from efface.eval.scores.comparison import differences
from efface.eval.scores.intervals import CONFIDENCE_LEVEL
from efface.eval.scores.results import Scores
from efface.eval.scores.scoring import BASE, score_table

Question = Mapping[Axis, float | None]
"""By axis the threshold that a score is held against, or None: which of two methods scores higher."""


@dataclass(frozen=True)
class LookAnswer:
    """What an interval says of an axis of one method, or of the difference to another."""

    verdict: str | None
    """"above" or "below" the threshold, "higher" or "lower" than the other method; None: it does not say yet."""
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        return vars(self)


def look_sizes(most: int) -> tuple[int, ...]:
    """Images of each prompt after each look: doubled from look to look, up to `most`."""
    sizes = [most]
    while sizes[0] > 1:
        sizes.insert(0, (sizes[0] + 1) // 2)
    return tuple(sizes)


def look_level(looks: int) -> float:
    """The level of each look's intervals, by which all of them together hold `CONFIDENCE_LEVEL`."""
    return 1 - (1 - CONFIDENCE_LEVEL) / looks


def side(low: float, high: float, threshold: float, words: tuple[str, str] = ("below", "above")) -> str | None:
    """On which side of the threshold an interval lies, or None where it holds it."""
    return words[1] if low > threshold else words[0] if high < threshold else None


def answers(table: pa.Table, question: Question, level: float) -> dict[Axis, dict[str, LookAnswer]]:
    """By axis and method, from the rows of one judge so far. Raises UserError where two methods cannot be compared."""
    labels = sorted(set(table["method"].unique().to_pylist()) - {BASE})
    scores = {label: score_table(table, method=label, level=level) for label in labels}
    found: dict[Axis, dict[str, LookAnswer]] = {}
    for axis, threshold in question.items():
        found[axis] = _compared(scores, axis) if threshold is None else _held(scores, axis, threshold)
    return found


def settled(found: Mapping[Axis, Mapping[str, LookAnswer]]) -> frozenset[Axis]:
    """The axes of which every answer is given."""
    return frozenset(axis for axis, by in found.items() if all(answer.verdict for answer in by.values()))


def read_question(texts: Sequence[str]) -> dict[Axis, float | None]:
    """From `forget=0.9` and `retain`. Raises UserError."""
    question: dict[Axis, float | None] = {}
    for text in texts:
        name, given, value = text.partition("=")
        axis = next((axis for axis in AXES if axis == name), None)
        if axis is None:
            raise UserError(f"--until {text}: should begin with one of {', '.join(AXES)}")
        try:
            threshold = float(value) if given else None
        except ValueError:
            threshold = -1.0
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"--until {text}: should be {axis}=THRESHOLD with a number from 0 to 1, or {axis} alone")
        question[axis] = threshold
    return question


def _held(scores: Mapping[str, Scores], axis: Axis, threshold: float) -> dict[str, LookAnswer]:
    found = {}
    for label, of in scores.items():
        interval = of.intervals.axes[axis]
        found[label] = LookAnswer(side(interval.low, interval.high, threshold), interval.low, interval.high)
    return found


def _compared(scores: Mapping[str, Scores], axis: Axis) -> dict[str, LookAnswer]:
    if len(scores) != 2:
        raise UserError(f"--until {axis}: compares two methods, and here are {len(scores)}; give {axis}=THRESHOLD")
    against = min(scores)
    (label, difference), *_ = differences(scores, against).items()
    paired = difference.axes[axis]
    return {f"{label} to {against}": LookAnswer(side(paired.low, paired.high, 0, ("lower", "higher")), *paired[1:])}
