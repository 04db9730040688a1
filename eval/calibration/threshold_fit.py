"""The threshold of a score, from images with and without the concept; pure functions of scores.

With few images the sample's own best cut follows every accident of it. The share of scores on either side is therefore
smoothed: each score counts as a normal distribution around itself, as wide as a kernel density estimate takes it
(Silverman, 1986, eq. 3.30), on the scale of log-odds, on which probabilities near 0 and 1 are spread out.
"""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

GRID = 512
"""Points between the lowest and the highest score at which a threshold is looked for."""
MIN_IMAGES = 10
"""Images with a concept, and without it, below which its threshold is that of all concepts together."""


def best_threshold(own: Scores, others: Scores) -> float:
    """The threshold of the highest (recall + specificity) / 2, a score at or above it counting as present.

    own, others: probabilities (n,) and (m,), n and m >= 1, of images with and without the concept.
    """
    found, absent = _log_odds(own), _log_odds(others)
    low, high = min(found.min(), absent.min()), max(found.max(), absent.max())
    if low == high:
        return float(own[0])
    cuts = np.linspace(low, high, GRID)
    recall = _normal_cdf((found[:, None] - cuts) / _bandwidth(found, high - low)).mean(axis=0)
    specificity = _normal_cdf((cuts - absent[:, None]) / _bandwidth(absent, high - low)).mean(axis=0)
    balanced = recall + specificity
    best = np.flatnonzero(balanced >= balanced.max() - 1e-9)
    return float(1 / (1 + np.exp(-(cuts[best[0]] + cuts[best[-1]]) / 2)))


def _log_odds(probabilities: Scores) -> Scores:
    """As far as single precision tells a probability from 0 and 1."""
    inside = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _bandwidth(values: Scores, span: float) -> float:
    """Silverman's 1.06 min(sd, IQR / 1.34) n^(-1/5), and at least half a step of the grid."""
    if len(values) > 1:
        quartiles = np.percentile(values, [25, 75])
        spread = min(values.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.34) or values.std(ddof=1)
    else:
        spread = 0.0
    return max(1.06 * float(spread) * len(values) ** -0.2, span / GRID / 2)


def _normal_cdf(values: Scores) -> Scores:
    """Of the standard normal distribution, by Abramowitz and Stegun 7.1.26 (error below 1.5e-7)."""
    x = np.abs(values) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = 1 - series * np.exp(-(x**2))
    return np.asarray(0.5 * (1 + np.sign(values) * erf))
