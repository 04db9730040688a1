"""Differences of methods that were asked the same questions: their prompts and images are pairs."""

from collections.abc import Mapping

from efface.concepts.prompts import AXES
from efface.errors import UserError, did_you_mean
from efface.eval.scores.jackknife import difference
from efface.eval.scores.results import Difference, Paired, Scores


def differences(scores: Mapping[str, Scores], against: str | None = None) -> dict[str, Difference]:
    """Of each method (by its label) to one: `against`, or the best by `err_mean`.

    Methods that were asked something else are left out. Raises UserError where `against` has no scores.
    """
    if against is not None and against not in scores:
        raise UserError(f"there are no scores of a method '{against}', {did_you_mean(against, list(scores))}")
    if not scores:
        return {}
    to = against or best(scores)
    same = [label for label in scores if label != to and scores[label].questions == scores[to].questions]
    return {label: _difference(scores[label], scores[to], to) for label in same}


def best(scores: Mapping[str, Scores]) -> str:
    """The label with the highest `err_mean`, of several the first in the alphabet."""
    return min(scores, key=lambda label: (-scores[label].err_mean, label))


def _difference(one: Scores, other: Scores, to: str) -> Difference:
    found = difference(one.estimates, other.estimates)
    *axes, err_mean, err_of_means = (
        Paired(float(a), float(b), float(c)) for a, b, c in zip(found.score, found.low, found.high, strict=True)
    )
    return Difference(to, dict(zip(AXES, axes, strict=True)), err_mean, err_of_means)
