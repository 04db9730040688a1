"""Judged images of two methods with known truth, for `benchmarks/coverage.py`.

The chance that an image is a success is, on the scale of logits,

    rate of the axis + concept + method's concept + prompt + method's prompt + training seed

each but the first a normal effect. Whether it is one also depends on noise that both methods share in part, as they
start from the same seeds. The truth of a cell is its chance averaged over prompts and training seeds; with one prompt,
over the images of that prompt. Where one model has forgotten all concepts (`shared`), what it should retain is asked
once for all of them.
"""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from efface.concepts.prompts import AXES
from efface.eval.scores.axis_cells import ScoredImages

Array = NDArray[np.float64]
RETAIN = AXES.index("retain")

CONCEPT, METHOD_CONCEPT, PROMPT, METHOD_PROMPT, SEED = 1.0, 0.3, 0.8, 0.4, 0.4
"""Standard deviations in logits. A prompt's: rates of 0.5 and 0.8 vary between prompts by 0.2 and 0.13."""
SHARED_NOISE = 0.5
"""Share of the variance of an image's noise that both methods have in common."""
ADVANTAGE = np.array([-0.3, 0.3, -0.3, 0.3, 0.3])
"""Of the second method over the first, in logits by axis."""


@dataclass(frozen=True)
class Design:
    """How many of each there are, and whether one model has forgotten all concepts."""

    concepts: int
    prompts: int
    images: int
    shared: bool = False
    training_seeds: int = 1

    def __str__(self) -> str:
        size = f"{self.concepts} concepts x {self.prompts} prompts x {self.images} images"
        return size + " shared" * self.shared + f" x {self.training_seeds} seeds" * (self.training_seeds > 1)


@dataclass(frozen=True)
class Simulated:
    """Of one method: its answers, and the true rates (concepts, 5)."""

    answers: ScoredImages
    truth: Array


def simulate(rates: Array, design: Design, rng: np.random.Generator) -> tuple[Simulated, Simulated]:
    """Both methods, asked the same. rates: (5,), in (0, 1)."""
    shape = (design.concepts, len(AXES), design.prompts, design.training_seeds, design.images)
    concept = _normal(rng, CONCEPT, shape, (0, 1), design)
    prompt = _normal(rng, PROMPT, shape, (0, 1, 2), design)
    noise = rng.normal(size=shape)
    _share(noise, design)
    two = []
    for sign in (-0.5, 0.5):
        mean = np.log(rates / (1 - rates)) + sign * ADVANTAGE
        fixed = mean[None, :, None, None, None] + concept + _normal(rng, METHOD_CONCEPT, shape, (0, 1), design)
        prompts = prompt + _normal(rng, METHOD_PROMPT, shape, (0, 1, 2), design)
        seeds = _normal(rng, SEED if design.training_seeds > 1 else 0.0, shape, (0, 1, 3), design)
        own = rng.normal(size=shape)
        _share(own, design)
        uniform = _normal_cdf(np.sqrt(SHARED_NOISE) * noise + np.sqrt(1 - SHARED_NOISE) * own)
        success = uniform < _logistic(fixed + prompts + seeds)
        varied = SEED if design.training_seeds > 1 else 0.0
        if design.prompts > 1:
            varied = float(np.hypot(varied, np.hypot(PROMPT, METHOD_PROMPT)))
        centre = (fixed if design.prompts > 1 else fixed + prompts)[:, :, 0, 0, 0]
        two.append(Simulated(_answers(success, design), _mean_logistic(centre, varied)))
    return two[0], two[1]


def _normal(
    rng: np.random.Generator, deviation: float, shape: tuple[int, ...], axes: tuple[int, ...], design: Design
) -> Array:
    """One effect for each index of the named axes; if what is retained is shared, all concepts have the same there."""
    effect = deviation * rng.normal(size=[size if axis in axes else 1 for axis, size in enumerate(shape)])
    _share(effect, design)
    return effect


def _share(array: Array, design: Design) -> None:
    if design.shared:
        array[:, RETAIN] = array[:1, RETAIN]


def _answers(success: NDArray[np.bool_], design: Design) -> ScoredImages:
    return ScoredImages(**_questions(success.shape, design), success=success.ravel().astype(np.float64))


@cache
def _questions(shape: tuple[int, ...], design: Design) -> dict[str, NDArray[np.int64]]:
    """What each row asks, whatever the answer."""
    concept, axis, prompt, seed, image = (index.ravel() for index in np.indices(shape))
    asked = np.where(axis == RETAIN, 0, concept) if design.shared else concept
    model = seed if design.shared else concept * design.training_seeds + seed
    number = (asked * len(AXES) + axis) * design.prompts + prompt
    return {"concept": concept, "axis": axis, "model": model, "prompt": number, "seed": image}


def _logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _mean_logistic(centre: Array, deviation: float) -> Array:
    """E[logistic(centre + deviation z)] for a standard normal z."""
    return np.asarray(_logistic(centre[..., None] + deviation * _NODES) @ (_WEIGHTS / _WEIGHTS.sum()))


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(40)


_GRID = np.linspace(-6, 6, 4001)
_CDF = np.array([NormalDist().cdf(x) for x in _GRID])


def _normal_cdf(x: Array) -> Array:
    return np.interp(x, _GRID, _CDF)
