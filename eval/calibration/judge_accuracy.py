"""How often a judge is right, with intervals; and what that makes of a share of images: the Rogan-Gladen estimate.

    corrected = (p + specificity - 1) / (recall + specificity - 1)

p is the share of images in which the judge finds a concept; `corrected` the share in which it is. It is unbiased where
recall and specificity were measured on other images, and so it may lie below 0 or above 1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import erfc, exp, pi, sqrt

from pydantic import Field

from efface.config_files import StrictModel

Z = 1.959963984540054
"""The normal distribution's quantile of a 95 % interval."""
Interval = tuple[float, float]


class Accuracy(StrictModel):
    """How a judge does on one concept, or on several together; a rate without an image to measure it on is None."""

    recall: float | None = Field(ge=0, le=1, description="share of the concept's own images where it is found")
    specificity: float | None = Field(ge=0, le=1, description="share of other concepts' images where it is not found")
    own: int = Field(ge=0, description="images of the concept with a verdict")
    others: int = Field(ge=0, description="images of other concepts with a verdict")
    unreadable: int = Field(ge=0, description="answers that could not be read, and images that are no evidence")
    recall_interval: Interval | None = Field(None, description="95 %, Wilson's, of `own` images")
    specificity_interval: Interval | None = Field(None, description="95 %, Wilson's, of `others` images")

    @classmethod
    def counted(cls, found: int, own: int, passed: int, others: int, unreadable: int) -> "Accuracy":
        """found: of `own` images; passed: those of `others` without a false find."""
        return cls(
            recall=found / own if own else None,
            specificity=passed / others if others else None,
            own=own,
            others=others,
            unreadable=unreadable,
            recall_interval=wilson(found, own) if own else None,
            specificity_interval=wilson(passed, others) if others else None,
        )


def wilson(successes: float, trials: int) -> Interval:
    """Wilson's 95 % interval (1927) of a share, of which neither end is ever without width."""
    share, square = successes / trials, Z**2 / trials
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * sqrt(share * (1 - share) / trials + square / 4 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def together(accuracies: Iterable[Accuracy]) -> Accuracy:
    """Of several concepts as if they were one."""
    parts = list(accuracies)
    found = sum(round((a.recall or 0.0) * a.own) for a in parts)
    passed = sum(round((a.specificity or 0.0) * a.others) for a in parts)
    counts = (sum(getattr(a, name) for a in parts) for name in ("own", "others", "unreadable"))
    own, others, unreadable = counts
    return Accuracy.counted(found, own, passed, others, unreadable)


def mean_accuracy(accuracy: Mapping[str, Accuracy]) -> float | None:
    """Mean over concepts of (recall + specificity) / 2; None where no concept has both."""
    balanced = [
        (a.recall + a.specificity) / 2 for a in accuracy.values() if a.recall is not None and a.specificity is not None
    ]
    return sum(balanced) / len(balanced) if balanced else None


@dataclass(frozen=True)
class Corrected:
    """A corrected share, and what makes it uncertain, to first order."""

    value: float
    image_variance: float
    """From the images that were judged."""
    by_recall: float
    """What one standard error of the recall adds; all shares that are corrected by it move together."""
    by_specificity: float


def rogan_gladen(share: float, images: int, accuracy: Accuracy) -> Corrected | None:
    """The corrected share of `images` in which the judge finds the concept in `share` (Rogan & Gladen, 1978).

    A measured J = recall + specificity - 1 makes 1 / J biased; `_inverse` is not. That the specificity stands above the
    line too is put right to second order. Standard errors are of counts with a success and a failure more than were
    seen, so that none is 0. None where the judge was not measured, or is no better than chance.
    """
    if accuracy.recall is None or accuracy.specificity is None:
        return None
    informative = accuracy.recall + accuracy.specificity - 1
    if informative <= 0:
        return None
    recall, specificity = _variance(accuracy.recall, accuracy.own), _variance(accuracy.specificity, accuracy.others)
    inverse = _inverse(informative, sqrt(recall + specificity))
    value = (share + accuracy.specificity - 1) * inverse + specificity * inverse**2
    return Corrected(
        value,
        _variance(share, images) * inverse**2,
        -value * sqrt(recall) * inverse,
        (1 - value) * sqrt(specificity) * inverse,
    )


def _inverse(estimate: float, error: float) -> float:
    """The unbiased estimate of 1 / mu from a normal estimate of mu > 0 with this standard error (Voinov, 1985): Mills'
    ratio (1 - Phi(z)) / phi(z) of z = estimate / error, divided by the error."""
    z = estimate / error
    if z > 20:
        return (1 - 1 / z**2 + 3 / z**4) / estimate
    return sqrt(pi / 2) * exp(z**2 / 2) * erfc(z / sqrt(2)) / error


def _variance(share: float, count: int) -> float:
    """Of a share of `count`, with a success and a failure added."""
    shrunk = (share * count + 1) / (count + 2)
    return shrunk * (1 - shrunk) / (count + 2)
