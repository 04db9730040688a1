"""Intervals of what lies in [0, 1], as arithmetic. Arrays in, arrays out.

Sources: proportions in clustered samples: Wilson's with an effective sample size (Kott and Carr 1997; compared by
Franco, Little, Louis and Slud 2019), widened for few clusters as by Korn and Graubard 1998, with degrees of freedom as
by Welch 1947. Difference of two such estimates: Newcombe 1998 (method 10), in general MOVER (Zou and Donner 2008).
"""

from functools import cache
from math import gamma, pi, sqrt
from statistics import NormalDist

import numpy as np

from efface.eval.scores.err import Array

CONFIDENCE_LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE_LEVEL) / 2)
"""What an interval of that level reaches to, in standard deviations."""


def estimation_noise(variance: Array, df: Array) -> Array:
    """Half the variance of an estimated variance with so many degrees of freedom, which sums of such add up.

    2 s^4 / df is what it is for the true variance s^2; for an estimate v of it, E[v^2] = s^4 (1 + 2 / df).
    """
    return np.asarray(variance**2 / (df + 2))


def degrees_of_freedom(variance: Array, noise: Array) -> Array:
    """Of a sum of estimated variances; inf where all of them are known.

    Welch's second form, df = v^2 / noise - 2 (Biometrika 34, 1947), which is exact for a single estimate and does not
    underrate a sum of many as Satterthwaite's own does.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise > 0, variance**2 / noise - 2, np.inf)


def t_quantile(df: Array, level: float = CONFIDENCE_LEVEL) -> Array:
    """Student's t that an interval of that level reaches to, for any degrees of freedom >= 1 (less counts as 1; inf is
    the normal distribution)."""
    reciprocal = 1.0 / np.maximum(np.asarray(df, dtype=np.float64), 1.0)
    return np.interp(reciprocal, *_t_quantiles(level))


@cache
def _t_quantiles(level: float) -> tuple[Array, Array]:
    """The quantile at 1 / df = 0, 1/100, …, 1: with t = sqrt(df) tan(u) it is an integral of cos(u)^(df - 1)."""
    reciprocals = np.linspace(0, 1, 101)
    u = np.linspace(0, pi / 2, 20_001)
    middle = (u[1:] + u[:-1]) / 2
    quantiles = [normal_quantile(level)]
    for df in 1 / reciprocals[1:]:
        density = 2 * _gamma_ratio(df) / sqrt(pi) * np.cos(middle) ** (df - 1)
        inside = np.concatenate([[0.0], np.cumsum(density) * (u[1] - u[0])])
        quantiles.append(sqrt(df) * np.tan(np.interp(level, inside, u)))
    return reciprocals, np.array(quantiles)


def normal_quantile(level: float) -> float:
    """What an interval of that level reaches to, in standard deviations."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _gamma_ratio(df: float) -> float:
    return gamma((df + 1) / 2) / gamma(df / 2)


def cluster_quantile(df: Array, images: Array, level: float = CONFIDENCE_LEVEL) -> Array:
    """The normal quantile, widened as t is for `df` degrees of freedom against one less than there are images."""
    widening = t_quantile(df, level) / t_quantile(np.asarray(images) - 1.0, level)
    return normal_quantile(level) * np.maximum(widening, 1.0)


def wilson_interval(estimate: Array, effective: Array, quantile: Array) -> tuple[Array, Array]:
    """Wilson's score interval of a share in [0, 1] that is as certain as `effective` > 0 independent images make it."""
    square = quantile**2 / effective
    middle = (estimate + square / 2) / (1 + square)
    half = np.sqrt(square * estimate * (1 - estimate) + square**2 / 4) / (1 + square)
    return middle - half, middle + half


def difference_interval(
    first: tuple[Array, Array, Array], second: tuple[Array, Array, Array], correlation: Array
) -> tuple[Array, Array]:
    """The interval of first - second from those of both, each (estimate, low, high), and how their errors correlate."""
    (one, one_low, one_high), (two, two_low, two_high) = first, second
    below = _combined(one - one_low, two_high - two, correlation)
    above = _combined(one_high - one, two - two_low, correlation)
    return one - two - below, one - two + above


def _combined(one: Array, two: Array, correlation: Array) -> Array:
    return np.sqrt(np.maximum(one**2 + two**2 - 2 * correlation * one * two, 0.0))
