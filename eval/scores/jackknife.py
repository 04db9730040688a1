"""How certain scores are: what leaving out a prompt, an image or a training seed changes, and the intervals from it.

The prompts of a cell (an axis of a concept) are a sample of those that might have been asked. A unit is a prompt with
all its images; where a cell has a single prompt it is an image, and the interval then speaks of that prompt only. For
unit u with weight w_u, of U in its cell,

    shift_u = w_u (mean_u - mean) sqrt(U / (U - 1))            so that Var(mean) is estimated by sum_u shift_u^2

(of images, whose variance is binomial, without the root). A score is a function f of cells, and what it changes by is

    effect_u = f(cells + shifts of u) - f(cells),                                 Var(f) = sum_u effect_u^2

A prompt, or a single image, that is asked in several cells is one unit with a shift in each: retained images that many
concepts share, and prompts that all models of a method are asked, count once with no rule of their own. A cell without
any spread has the binomial variance of a rate near its own, as one more unit. Models of several training seeds are
units crossed with the prompts, and add the variance that they have beyond that of prompts and images. Then

    n_eff = f (1 - f) / Var(f),               [low, high] = Wilson's interval of f - bias with n_eff images

with the rates of `Cells.rates` in f, and the bias that a harmonic mean of noisy shares has. `benchmarks/coverage.py`
shows how often these intervals hold the truth.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from efface.eval.scores.axis_cells import Cells, IntArray, K, ScoredImages, grouped
from efface.eval.scores.err import Array, err_mean, err_of_means, harmonic_mean, harmonic_mean_bias
from efface.eval.scores.intervals import (
    CONFIDENCE_LEVEL,
    cluster_quantile,
    degrees_of_freedom,
    difference_interval,
    estimation_noise,
    wilson_interval,
)

Pair = tuple[Array, Array]
"""Of the scores of concepts (concepts, 6), and of those of all (7,)."""

MIN_SPREAD = 1e-20
"""A sum of squared shifts below this is rounding."""
SMALL_SHIFT = 1e-6
"""So small that scores change by it as by their derivative."""


@dataclass(frozen=True)
class Intervals:
    """Scores, all of one shape, with the ends of their intervals and what the interval of a difference needs."""

    score: Array
    centre: Array
    """The score less its bias, in [0, 1]."""
    low: Array
    high: Array
    variance: Array
    own_low: Array
    """The ends before they are moved to hold the score too, by which differences go."""
    own_high: Array


@dataclass(frozen=True)
class Estimates:
    """Scores with intervals: of each concept its axes and ERR (concepts, 6); of all the means of the axes, err_mean and
    err_of_means (7,)."""

    concepts: Intervals
    overall: Intervals
    units: IntArray
    """(units,): 2^32 prompt for a prompt, and + 1 + seed for an image."""
    effects: Array
    """(units, 7): what each changes of `overall`."""


def estimate(answers: ScoredImages, level: float = CONFIDENCE_LEVEL) -> Estimates:
    """All scores and their intervals of that level, in the time of a few sorts of the rows."""
    cells = Cells(answers)
    units, unit = _units(cells)
    spread = _Spread(cells, _with_floor(cells, _shifts(cells, unit, cells.deviation, cells.prompts.ravel(), True)))
    variances, dfs = spread.variances
    if (cells.models > 1).any():
        variances, dfs = _with_training_seeds(cells, unit, variances, dfs)
    means, rates = cells.means, cells.rates
    bias = harmonic_mean_bias(rates, variances[0][:, :K])
    bias_of_means = harmonic_mean_bias(rates.mean(axis=0), variances[1][:K])
    concepts = _intervals(
        np.column_stack([means, harmonic_mean(means)]),
        np.column_stack([np.zeros_like(means), bias]),
        np.column_stack([rates, harmonic_mean(rates)]),
        np.column_stack([cells.images, cells.images.sum(axis=1)]),
        variances[0],
        dfs[0],
        level,
    )
    overall = _intervals(
        _overall(means),
        np.concatenate([np.zeros(K), [bias.mean(), bias_of_means]]),
        _overall(rates),
        np.append(cells.distinct_images, [cells.distinct_images.sum()] * 2),
        variances[1],
        dfs[1],
        level,
    )
    own = spread.unit < len(units)
    return Estimates(concepts, overall, units[spread.unit[own]], spread.effects[own])


def difference(one: Estimates, other: Estimates) -> Intervals:
    """`overall` of one less the other's (7,), of two methods asked the same, their prompts numbered alike."""
    _, of_one, of_other = np.intersect1d(one.units, other.units, assume_unique=True, return_indices=True)
    covariance = (one.effects[of_one] * other.effects[of_other]).sum(axis=0)
    a, b = one.overall, other.overall
    correlation = covariance / np.sqrt(a.variance * b.variance)
    ends_a, ends_b = ((of.centre, of.own_low, of.own_high) for of in (a, b))
    low, high = difference_interval(ends_a, ends_b, correlation)
    score = a.score - b.score
    variance = a.variance + b.variance - 2 * covariance
    holds_score = np.minimum(low, score), np.maximum(high, score)
    return Intervals(score, a.centre - b.centre, *holds_score, variance, low, high)


def _intervals(
    score: Array, bias: Array, rate: Array, images: Array, variance: Array, df: Array, level: float
) -> Intervals:
    # Units that several cells share may cancel in their mean to the last bit, which says nothing.
    variance = np.where(variance > MIN_SPREAD, variance, rate * (1 - rate) / images)
    centre = np.clip(score - bias, 0.0, 1.0)
    low, high = wilson_interval(centre, rate * (1 - rate) / variance, cluster_quantile(df, images, level))
    holds_score = np.clip(np.minimum(low, score), 0.0, 1.0), np.clip(np.maximum(high, score), 0.0, 1.0)
    return Intervals(score, centre, *holds_score, variance, low, high)


def _overall(cells: Array) -> Array:
    """(concepts, 5) -> (7,)"""
    means = cells.mean(axis=0)
    return np.concatenate([means, [err_mean(cells), err_of_means(cells)]])


@dataclass(frozen=True)
class _Shifts:
    """What cells shift by without a unit: one row for each unit in each of its cells, cell by cell."""

    cell: IntArray
    unit: IntArray
    shift: Array
    scale: Array
    """Sum over units of (scale shift)^2 is the variance of the cell's mean."""
    df: Array
    """The degrees of freedom that the unit adds to that variance; inf where it is binomial."""


def _units(cells: Cells) -> tuple[IntArray, IntArray]:
    """The units (units,), as in `Estimates`, and the number of each row's."""
    a = cells.answers
    single = cells.prompts.ravel()[cells.cell] == 1
    return np.unique((a.prompt << 32) + np.where(single, a.seed + 1, 0), return_inverse=True)


def _shifts(cells: Cells, unit: IntArray, deviation: Array, size: IntArray, binomial: bool = False) -> _Shifts:
    """Of units (rows,) from the deviations of their images (rows,), where each cell has `size` of them (cells,).

    A cell with a single one has no shift; with `binomial` its units are images, of the variance that its rate gives.
    """
    first, group = grouped(cells.cell, unit)
    cell = cells.cell[first]
    single = size[cell] == 1
    count = np.where(single, cells.images.ravel()[cell], size[cell])
    left = 1 - 1 / np.maximum(count, 2)
    shift = -np.bincount(group, cells.weight * deviation) / left
    scale = np.where(single, 0.0, np.sqrt(left))
    if binomial:
        variance = (cells.rates * (1 - cells.rates) / cells.images).ravel()
        spread = np.maximum(np.bincount(cell, shift**2), MIN_SPREAD)
        scale = np.where(single, np.sqrt(variance / spread)[cell], scale)
    return _Shifts(cell, unit[first], shift, scale, np.where(single, np.inf if binomial else 1.0, left))


def _with_floor(cells: Cells, shifts: _Shifts) -> _Shifts:
    """The shifts, and one more unit for each cell without any; cells of the same questions share it."""
    still = np.flatnonzero(np.bincount(shifts.cell, shifts.shift**2) < MIN_SPREAD)
    rates, means, images = (array.ravel()[still] for array in (cells.rates, cells.means, cells.images))
    shift = np.where(means > 0.5, -SMALL_SHIFT, SMALL_SHIFT)
    scale = np.sqrt(rates * (1 - rates) / images) / SMALL_SHIFT
    unit = shifts.unit.max() + 1 + shifts.unit[np.searchsorted(shifts.cell, still)]
    more = (still, unit, shift, scale, np.full(len(still), np.inf))
    old = (shifts.cell, shifts.unit, shifts.shift, shifts.scale, shifts.df)
    return _Shifts(*(np.append(one, other) for one, other in zip(old, more, strict=True)))


@dataclass(frozen=True)
class _Spread:
    """What the units of `shifts` change of every score."""

    cells: Cells
    shifts: _Shifts

    @cached_property
    def _units(self) -> tuple[IntArray, IntArray]:
        return np.unique(self.shifts.unit, return_index=True)

    @property
    def _scale(self) -> Array:
        return self.shifts.scale[self._units[1]]

    @property
    def unit(self) -> IntArray:
        """(units,): their numbers in `shifts`."""
        return self._units[0]

    @cached_property
    def _of_concept(self) -> tuple[IntArray, IntArray, Array]:
        """For each unit and concept: number of the unit in `unit`, concept, and shifts of its axes (rows, 5)."""
        concept, axis = np.divmod(self.shifts.cell, K)
        number = np.searchsorted(self.unit, self.shifts.unit)
        first, row = grouped(number, concept)
        shift = np.bincount(row * K + axis, self.shifts.shift, len(first) * K).reshape(-1, K)
        return number[first], concept[first], shift.astype(np.float64)

    @cached_property
    def _on_err(self) -> Array:
        """What a concept's ERR changes by without a unit, for each unit and concept."""
        _, concept, shift = self._of_concept
        rates = self.cells.rates[concept]
        return harmonic_mean(self.cells.within(rates + shift, concept)) - harmonic_mean(rates)

    @cached_property
    def effects(self) -> Array:
        """(units, 7): on the means of the axes, on err_mean and on err_of_means, each times the unit's scale."""
        number, _, shift = self._of_concept
        concepts, rates = len(self.cells.means), self.cells.rates.mean(axis=0)
        totals = [np.bincount(number, column) / concepts for column in (*shift.T, self._on_err)]
        low, high = self.cells.smallest_rates.mean(axis=0), self.cells.largest_rates.mean(axis=0)
        moved = np.clip(rates + np.column_stack(totals[:K]), low, high)
        on_err_of_means = harmonic_mean(moved) - harmonic_mean(rates)
        return np.column_stack([*totals, on_err_of_means]) * self._scale[:, None]

    @cached_property
    def variances(self) -> tuple[Pair, Pair]:
        """Variances and their degrees of freedom, each of the scores of concepts (concepts, 6) and of all (7,).

        The units that first come up in one cell are taken to vary alike, with the degrees of freedom of their number.
        """
        number, concept, shift = self._of_concept
        first_row = self._units[1]
        stratum, df = self.shifts.cell[first_row], self.shifts.df[first_row]
        effects = np.column_stack([shift, self._on_err]) * self._scale[number, None]
        of_concept = _variance(effects, concept, stratum[number], df[number])
        overall = _variance(self.effects, np.zeros_like(stratum), stratum, df)
        return (of_concept[0], overall[0][0]), (of_concept[1], overall[1][0])


def _variance(effects: Array, group: IntArray, stratum: IntArray, df: Array) -> tuple[Array, Array]:
    """Sums of squares of effects (rows, scores) in each group, and their degrees of freedom: both (groups, scores)."""
    first, part = grouped(group, stratum)
    parts = _sums(part, effects**2)
    variance, noise = (_sums(group[first], each) for each in (parts, estimation_noise(parts, _sums(part, df[:, None]))))
    return variance, degrees_of_freedom(variance, noise)


def _sums(group: IntArray, values: Array) -> Array:
    """Of values (rows, scores), the sum in each group: (groups, scores)."""
    return np.column_stack([np.bincount(group, column) for column in values.T]).astype(np.float64)


def _with_training_seeds(cells: Cells, unit: IntArray, variances: Pair, dfs: Pair) -> tuple[Pair, Pair]:
    """Variances and degrees of freedom with what models of several seeds differ by beyond their prompts and images.

    A model's mean also varies with its images; what these come to is the variance of the interaction of models and
    units, x - mean_unit - mean_model + mean (two-way analysis of variance), and is taken off.
    """
    model = cells.answers.model
    interaction = cells.deviation - cells.deviation_of(unit) - cells.deviation_of(model)
    of_models, df = _Spread(cells, _shifts(cells, model, cells.deviation, cells.models)).variances
    both = unit * (model.max() + 1) + model
    of_images, _ = _Spread(cells, _shifts(cells, both, interaction, cells.models)).variances
    total, total_df = [], []
    for sampled, own_df, seeds, seeds_df, images in zip(variances, dfs, of_models, df, of_images, strict=True):
        beyond = np.maximum(seeds - images, 0.0)
        total.append(sampled + beyond)
        total_df.append(
            degrees_of_freedom(sampled + beyond, estimation_noise(sampled, own_df) + estimation_noise(beyond, seeds_df))
        )
    return (total[0], total[1]), (total_df[0], total_df[1])
