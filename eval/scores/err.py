"""ERR and the harmonic mean that it is. Arrays in, arrays out.

Source: the Genmu challenge, ERR = HM(forget, indirect, adversarial, adjacent, retain), each in [0, 1], higher better.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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


def harmonic_mean_bias(values: Array, variances: Array) -> Array:
    """What the harmonic mean of noisy values is off by on average: half its second derivatives times variances.

        d2 H / dv_i2 = -2 H^2 / (k v_i^3) (1 - H / (k v_i))

    Both (..., k), the values above 0; returns (...).
    """
    k = values.shape[-1]
    mean = harmonic_mean(values)[..., None]
    curvature = -2 * mean**2 / (k * values**3) * (1 - mean / (k * values))
    return np.asarray((curvature * variances).sum(axis=-1) / 2)
