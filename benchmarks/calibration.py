"""How well judges are calibrated, in worlds where the truth is known.

    python -m benchmarks.calibration          (a minute on one CPU core)

A concept's scores are normal with variance 1 on the scale of log-odds, d' apart with and without the concept, and each
concept's lie elsewhere, as CLIP's do. A threshold is fitted on n images with the concept and 10 n without. Shown are,
as means over 400 concepts,

    lost        the best balanced accuracy there is, Phi(d' / 2), less that of the fitted threshold
    weak        the share of concepts of which it finds less than half
    bias        of the plain and of the corrected share of 20 images, at the worst of six true shares
    coverage    of the corrected share's 95 % interval, at the worst and at the best of them

The corrected shares are of judges measured on 20 and 200 images, each 4000 times.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks.record import write_result
from efface.eval.calibration.judge_accuracy import Accuracy, Z, rogan_gladen
from efface.eval.calibration.threshold_fit import best_threshold

SEPARATIONS = (1.0, 1.5, 2.0, 2.5, 3.0)
SIZES = (1, 5, 10, 20, 50)
TRUTHS = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)
CONCEPTS, REPETITIONS = 400, 4000
PHI = NormalDist().cdf


def fitted(separation: float, images: int, rng: np.random.Generator) -> dict[str, float]:
    """Thresholds of `images` images with the concept and ten times as many without."""
    lost, recalls = [], []
    for _ in range(CONCEPTS):
        place = rng.normal(0, 2)
        own, others = rng.normal(place + separation, 1, images), rng.normal(place, 1, 10 * images)
        cut = best_threshold(*(1 / (1 + np.exp(-scores)) for scores in (own, others)))
        at = float(np.log(cut) - np.log1p(-cut)) - place
        recalls.append(PHI(separation - at))
        lost.append(PHI(separation / 2) - (recalls[-1] + PHI(at)) / 2)
    return {"lost": float(np.mean(lost)), "weak": float(np.mean(np.array(recalls) < 0.5))}


def corrected(separation: float, rng: np.random.Generator) -> dict[str, float]:
    """Plain and corrected shares of 20 images, by a judge that was measured on 20 and 200."""
    right = PHI(separation / 2)
    plain, bias, coverage = [], [], []
    for truth in TRUTHS:
        values, held = [], 0
        seen = truth * right + (1 - truth) * (1 - right)
        for _ in range(REPETITIONS):
            accuracy = Accuracy.counted(rng.binomial(20, right), 20, rng.binomial(200, right), 200, 0)
            share = rogan_gladen(rng.binomial(20, seen) / 20, 20, accuracy)
            if share is None:
                continue
            values.append(share.value)
            error = sqrt(share.image_variance + share.by_recall**2 + share.by_specificity**2)
            held += abs(share.value - truth) <= Z * error
        plain.append(abs(seen - truth))
        bias.append(abs(float(np.mean(values)) - truth))
        coverage.append(held / len(values))
    return {
        "plain bias": max(plain),
        "corrected bias": max(bias),
        "least coverage": min(coverage),
        "most coverage": max(coverage),
    }


def main(separations: Sequence[float] = SEPARATIONS) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"thresholds": {}, "corrected": {}}
    heads = [f"lost, weak at {n}".rjust(20) for n in SIZES]
    print(f"   d {''.join(heads)}   bias plain, corrected  coverage")
    for separation in separations:
        by_size = {str(n): fitted(separation, n, rng) for n in SIZES}
        shares = corrected(separation, rng)
        found["thresholds"][str(separation)], found["corrected"][str(separation)] = by_size, shares
        cells = "".join("{lost:.4f}, {weak:.2f}".format(**row).rjust(20) for row in by_size.values())
        biases = f"{shares['plain bias']:.3f}, {shares['corrected bias']:.3f}"
        print(f"{separation:>4} {cells}{biases:>24}  {shares['least coverage']:.3f}-{shares['most coverage']:.3f}")
    return found


if __name__ == "__main__":
    print(write_result("calibration", main()))
