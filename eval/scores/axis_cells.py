"""Judged images as cells, one for each concept and axis: how they are weighed, and which of them belong together."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from efface.concepts.prompts import AXES
from efface.eval.scores.err import Array

IntArray = NDArray[np.int64]
K = len(AXES)


@dataclass(frozen=True)
class ScoredImages:
    """Images with a verdict, one row each, all (rows,).

    Numbers of concept, axis, model and prompt, and the seed, all >= 0; success is 0 or 1. Every axis of every concept
    has a row.
    """

    concept: IntArray
    axis: IntArray
    model: IntArray
    prompt: IntArray
    seed: IntArray
    success: Array


def grouped(*codes: IntArray) -> tuple[IntArray, IntArray]:
    """Of rows that agree in all codes (rows,): the first of each group (groups,), the group of every row (rows,)."""
    combined = codes[0]
    for code in codes[1:]:
        combined = combined * (code.max() + 1) + code
    _, first, group = np.unique(combined, return_index=True, return_inverse=True)
    return first, group


@dataclass(frozen=True)
class Cells:
    """Cells are numbered concept * 5 + axis."""

    answers: ScoredImages

    @cached_property
    def cell(self) -> IntArray:
        return self.answers.concept * K + self.answers.axis

    @cached_property
    def _of_model(self) -> tuple[IntArray, IntArray]:
        return grouped(self.cell, self.answers.model)

    @cached_property
    def models(self) -> IntArray:
        """(cells,): how many models are asked."""
        return np.bincount(self.cell[self._of_model[0]])

    @cached_property
    def weight(self) -> Array:
        """(rows,): every model of a cell weighs the same, and every image of a model; their sum in a cell is 1."""
        group = self._of_model[1]
        return np.asarray(1.0 / (self.models[self.cell] * np.bincount(group)[group]))

    @cached_property
    def means(self) -> Array:
        """(concepts, 5): the mean over models of their means over images."""
        first, group = self._of_model
        of_models = np.bincount(group, self.answers.success) / np.bincount(group)
        return np.asarray(np.bincount(self.cell[first], of_models) / self.models).reshape(-1, K)

    @cached_property
    def deviation(self) -> Array:
        """(rows,): from the cell's mean."""
        return np.asarray(self.answers.success - self.means.ravel()[self.cell])

    def deviation_of(self, unit: IntArray) -> Array:
        """(rows,): of the weighted mean of each row's unit in its cell, from the cell's mean."""
        _, group = grouped(self.cell, unit)
        return np.asarray(np.bincount(group, self.weight * self.deviation) / np.bincount(group, self.weight))[group]

    @cached_property
    def images(self) -> Array:
        """(concepts, 5)"""
        return np.bincount(self.cell).reshape(-1, K).astype(np.float64)

    @cached_property
    def distinct_images(self) -> Array:
        """(5,): of each axis over all concepts, an image that several of them are asked about counts once."""
        a = self.answers
        first, _ = grouped(a.model, a.prompt, a.seed, a.axis)
        return np.bincount(a.axis[first], minlength=K).astype(np.float64)

    @cached_property
    def prompts(self) -> IntArray:
        """(concepts, 5)"""
        first, _ = grouped(self.cell, self.answers.prompt)
        return np.bincount(self.cell[first]).reshape(-1, K)

    @cached_property
    def _axis_rates(self) -> Array:
        """(5,): over all concepts, with half an image more on either side of those that are distinct."""
        means = (self.means * self.images).sum(axis=0) / self.images.sum(axis=0)
        return np.asarray((means * self.distinct_images + 0.5) / (self.distinct_images + 1))

    def _smoothed(self, means: Array | float) -> Array:
        """Means (concepts, 5) with one more image of the axis's rate in each: in (0, 1)."""
        return np.asarray((self.images * means + self._axis_rates) / (self.images + 1))

    @cached_property
    def rates(self) -> Array:
        """(concepts, 5): the means, as they were with one more image of the axis's rate in each; in (0, 1)."""
        return self._smoothed(self.means)

    @cached_property
    def smallest_rates(self) -> Array:
        """(concepts, 5): what `rates` would be without a success."""
        return self._smoothed(0.0)

    @cached_property
    def largest_rates(self) -> Array:
        """(concepts, 5): what `rates` would be with successes alone."""
        return self._smoothed(1.0)

    def within(self, rates: Array, concept: IntArray) -> Array:
        """Rates (rows, 5) of these concepts (rows,), cut to what their cells' can be."""
        return np.clip(rates, self.smallest_rates[concept], self.largest_rates[concept])
