"""The arithmetic of scores: harmonic means and bootstrap intervals. Arrays in, arrays out.

Source: the Genmu challenge, ERR = HM(forget, indirect, adversarial, adjacent, retain), each in [0, 1],
higher better.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BOOTSTRAP_SAMPLES = 1000
CONFIDENCE_LEVEL = 0.95


def harmonic_mean(values: Array) -> Array:
    """k / sum(1 / value) over the last axis; 0 where any value is 0. values: (..., k), in [0, 1]."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(values.shape[-1] / (1.0 / values).sum(axis=-1))


def err_mean(axes: Array) -> Array:
    """Mean over concepts of their ERR. axes: (..., concepts, 5)."""
    return np.asarray(harmonic_mean(axes).mean(axis=-1))


def err_of_means(axes: Array) -> Array:
    """ERR of the axis means over concepts. axes: (..., concepts, 5)."""
    return harmonic_mean(np.asarray(axes).mean(axis=-2))


def resample_counts(size: int, draws: int, rng: np.random.Generator) -> Array:
    """How often each of `size` things comes up in a sample of `size` with replacement: (draws, size)."""
    return rng.multinomial(size, np.full(size, 1.0 / size), size=draws).astype(np.float64)


def clustered_mean(successes: Array, weights: Array, prompt_counts: Array, seed_counts: Array) -> Array:
    """Weighted mean of a prompts x seeds table under resampled prompts and seeds (two-way cluster bootstrap).

        mean_d = sum_ps P_dp S_ds successes_ps / sum_ps P_dp S_ds weights_ps

    successes, weights: (prompts, seeds), summed over the rows of a cell; prompt_counts: (draws, prompts);
    seed_counts: (draws, seeds). Returns (draws,); NaN where a draw holds no row.
    """
    hits = ((prompt_counts @ successes) * seed_counts).sum(axis=1)
    rows = ((prompt_counts @ weights) * seed_counts).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / rows)


def confidence_interval(samples: Array) -> tuple[float, float]:
    """The middle 95 % of bootstrap samples (draws,); draws without rows (NaN) do not count."""
    tail = 100 * (1 - CONFIDENCE_LEVEL) / 2
    low, high = np.nanpercentile(samples, [tail, 100 - tail])
    return float(low), float(high)
