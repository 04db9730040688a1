"""What another recipe changes of the scores: the same models, prompts and seeds, sampled in two ways, as pairs."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from efface.errors import UserError
from efface.eval.scores.comparison import differences
from efface.eval.scores.results import Difference, Scores
from efface.eval.scores.scoring import BASE, score_table

TOLERANCE = 0.01
"""A shift of an axis that does not matter: a point."""


@dataclass(frozen=True)
class RecipeShift:
    """Of one method, or the base."""

    reference: Scores
    other: Scores
    difference: Difference
    """`other` less `reference`, each with its 95 % interval."""

    def as_json(self) -> dict[str, Any]:
        return {
            name: {"axes": scores.axes, "err_mean": scores.err_mean}
            for name, scores in (("reference", self.reference), ("recipe", self.other))
        } | {"shift": self.difference.as_json()}


def recipe_shifts(reference: pa.Table, other: pa.Table) -> dict[str, RecipeShift]:
    """By label of the methods in two image tables, the base's as "base". Raises UserError where they are no pairs."""
    labels = sorted(set(reference["method"].unique().to_pylist()) & set(other["method"].unique().to_pylist()))
    found = {}
    for label in labels:
        scores = {"reference": _scores(reference, label), "other": _scores(other, label)}
        compared = differences(scores, against="reference")
        if "other" not in compared:
            raise UserError(
                f"'{label}' was asked other questions by each recipe, as where adversarial prompts are found anew by "
                "each, so there are no pairs; give a prompt set that has some of its own"
            )
        found[label] = RecipeShift(scores["reference"], scores["other"], compared["other"])
    return found


def _scores(table: pa.Table, label: str) -> Scores:
    if label != BASE:
        return score_table(table, method=label)
    of_base = [method == BASE for method in table["method"].to_pylist()]
    return score_table(table.filter(pa.array(of_base)))


def judged(shift: RecipeShift) -> str:
    """In a word or two, what the pairs say of the shift of the axes."""
    paired = shift.difference.axes.values()
    if any(not one.is_tie and max(abs(one.low), abs(one.high)) > TOLERANCE for one in paired):
        return "shifts"
    if all(one.low >= -TOLERANCE and one.high <= TOLERANCE for one in paired):
        return "within a point"
    return "more images would tell"
