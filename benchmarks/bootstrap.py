"""Bootstrap intervals of err_mean, which `benchmarks/coverage.py` compares with those that scores have.

Prompts are drawn with replacement within each concept and axis (images, where there is one prompt), each cell by
itself. Percentile: the middle 95 % of the draws. Basic: those mirrored at the estimate. BCa: percentiles corrected for
bias and skewness (Efron 1987), the acceleration from a jackknife over prompts.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulated_answers import Design
from efface.concepts.prompts import AXES
from efface.eval.scores.axis_cells import ScoredImages
from efface.eval.scores.err import err_mean, harmonic_mean

Array = NDArray[np.float64]
DRAWS = 1000
TAIL = 0.025
NORMAL = NormalDist()


def bootstrap_intervals(
    answers: ScoredImages, design: Design, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """The intervals of err_mean, by name. The rows of `answers` lie in the order of the design."""
    units = answers.success.reshape(design.concepts, len(AXES), design.prompts, -1)
    units = units.mean(axis=-1) if design.prompts > 1 else units[:, :, 0]
    n = units.shape[-1]
    counts = rng.multinomial(n, np.full(n, 1 / n), size=(DRAWS, *units.shape[:2]))
    draws = err_mean((counts * units).sum(axis=-1) / n)
    estimate = float(err_mean(units.mean(axis=-1)))
    low, high = np.quantile(draws, [TAIL, 1 - TAIL])
    return {
        "percentile": (low, high),
        "basic": (2 * estimate - high, 2 * estimate - low),
        "BCa": _bca(draws, estimate, units),
    }


def _bca(draws: Array, estimate: float, units: Array) -> tuple[float, float]:
    below = np.clip(((draws < estimate).mean() + (draws <= estimate).mean()) / 2, 1 / DRAWS, 1 - 1 / DRAWS)
    bias = NORMAL.inv_cdf(float(below))
    influence = _influence(units)
    squares = (influence**2).sum()
    acceleration = (influence**3).sum() / (6 * squares**1.5) if squares else 0.0
    z = np.array([bias + NORMAL.inv_cdf(level) for level in (TAIL, 1 - TAIL)])
    levels = [NORMAL.cdf(float(bias + each / (1 - acceleration * each))) for each in z]
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def _influence(units: Array) -> Array:
    """What err_mean loses without each unit: (concepts, 5, units)."""
    n = units.shape[-1]
    means = units.mean(axis=-1)
    without = (means[..., None] * n - units) / (n - 1)
    cells = np.repeat(np.repeat(means[:, None, None, :], len(AXES), 1), n, 2)  # (concepts, 5, units, 5)
    for axis in range(len(AXES)):
        cells[:, axis, :, axis] = without[:, axis]
    return np.asarray((harmonic_mean(means)[:, None, None] - harmonic_mean(cells)) / len(units))
