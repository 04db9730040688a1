"""Variances and intervals of scores against closed forms, and coverage of simulated truths."""

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.simulated_answers import Design, simulate
from efface.concepts.prompts import AXES
from efface.eval.scores.axis_cells import ScoredImages
from efface.eval.scores.err import err_mean
from efface.eval.scores.intervals import degrees_of_freedom, estimation_noise
from efface.eval.scores.jackknife import Estimates, Intervals, difference, estimate

Array = NDArray[np.float64]
FORGET, RETAIN, ERR_MEAN = 0, 4, 5
Z2 = 1.959964**2


def answers(success: Array, shared: bool = False, one_model: bool = True) -> ScoredImages:
    """success: (concepts, 5, prompts, models, images). shared: all concepts have the same prompts."""
    concept, axis, prompt, model, seed = (index.ravel() for index in np.indices(success.shape))
    of = 0 if shared else concept
    return ScoredImages(
        concept=concept,
        axis=axis,
        model=model if one_model else concept * success.shape[3] + model,
        prompt=(of * len(AXES) + axis) * success.shape[2] + prompt,
        seed=seed,
        success=success.ravel().astype(np.float64),
    )


def cells(prompts: int, images: int, successes: list[list[int]], concepts: int = 1) -> Array:
    """Every axis of every concept: of each prompt so many successes of its images."""
    one = np.array([np.arange(images) < count for count in successes[0]], dtype=np.float64)
    assert one.shape == (prompts, images)
    return np.broadcast_to(one[None, None, :, None], (concepts, len(AXES), prompts, 1, images)).copy()


def test_with_one_prompt_an_axis_has_the_interval_of_wilson_over_its_images() -> None:
    found = estimate(answers(cells(1, 10, [[8]])))
    assert found.concepts.low[0, FORGET] == pytest.approx(0.4902, abs=1e-4)
    assert found.concepts.high[0, FORGET] == pytest.approx(0.9433, abs=1e-4)


@pytest.mark.parametrize("images", [1, 4])
def test_images_that_repeat_what_their_prompt_says_make_nothing_more_certain(images: int) -> None:
    """Of 5 prompts 4 succeed: the variance of the mean of 5 is 0.8 * 0.2 / (5 - 1)."""
    found = estimate(answers(cells(5, images, [[images] * 4 + [0]])))
    assert found.concepts.variance[0, FORGET] == pytest.approx(0.04)


def test_a_cell_without_a_miss_has_the_width_of_its_images() -> None:
    found = estimate(answers(cells(5, 4, [[4] * 5])))
    assert found.concepts.low[0, FORGET] == pytest.approx(20 / (20 + Z2))
    assert found.concepts.high[0, FORGET] == found.concepts.score[0, FORGET] == 1


def test_degrees_of_freedom_of_a_sum_of_variances_are_those_of_its_parts_together() -> None:
    """Five variances of 4 degrees of freedom, drawn from chi square: 20. Of one alone 4, of known ones endless many."""
    drawn = np.random.default_rng(0).chisquare(4, (20_000, 5)) / 4
    of_sum = (drawn.sum(axis=1) ** 2).mean() / estimation_noise(drawn, np.array(4.0)).sum(axis=1).mean() - 2
    assert of_sum == pytest.approx(20, rel=0.02)
    variance = np.array([3.0])
    assert degrees_of_freedom(variance, estimation_noise(variance, np.array(4.0))) == pytest.approx(4)
    assert degrees_of_freedom(variance, estimation_noise(variance, np.array(np.inf))) == np.inf


def test_images_that_concepts_share_count_once() -> None:
    success = cells(5, 4, [[4, 3, 4, 2, 4]], concepts=4)
    apart, shared = estimate(answers(success)), estimate(answers(success, shared=True))
    alone = estimate(answers(success[:1]))
    for name in ("low", "high", "variance"):
        assert getattr(shared.overall, name) == pytest.approx(getattr(alone.overall, name), rel=5e-3)
    assert apart.overall.variance[RETAIN] == pytest.approx(alone.overall.variance[RETAIN] / 4)


def test_err_of_one_changed_axis_varies_by_its_derivative() -> None:
    """Many prompts: Var(H) = (H^2 / (5 p^2))^2 Var(p), the other axes without a miss."""
    success = np.ones((1, 5, 400, 1, 1))
    success[0, FORGET, :100] = 0
    found = estimate(answers(success))
    p, mean = 0.75, 5 / (4 + 1 / 0.75)
    of_forget = (mean**2 / (5 * p**2)) ** 2 * p * (1 - p) / 399
    others = 4 * (mean**2 / 5) ** 2 * (0.5 / 401) / 401 / 400  # what a cell without a miss varies by, at most
    assert of_forget * 0.98 < found.concepts.variance[0, 5] < (of_forget + others) * 1.05


def test_models_of_two_seeds_that_disagree_leave_little_known() -> None:
    """One always succeeds and one never: the mean has the variance (1/4 + 1/4) / (2 * 1), of one degree of freedom."""
    success = np.zeros((1, 5, 5, 2, 4))
    success[:, :, :, 0] = 1
    found = estimate(answers(success))
    assert found.concepts.variance[0, FORGET] == pytest.approx(0.25, rel=0.05)
    assert found.concepts.high[0, FORGET] - found.concepts.low[0, FORGET] > 0.9
    same = estimate(answers(np.repeat(cells(5, 4, [[4, 3, 4, 2, 4]]), 2, axis=3)))
    once = estimate(answers(cells(5, 4, [[4, 3, 4, 2, 4]])))
    assert same.concepts.variance[0, FORGET] == pytest.approx(once.concepts.variance[0, FORGET])


def test_methods_that_do_the_same_on_every_image_do_not_differ() -> None:
    rng = np.random.default_rng(0)
    one = estimate(answers((rng.random((5, 5, 15, 1, 4)) < 0.7).astype(np.float64)))
    found = difference(one, one)
    assert found.score == pytest.approx(0)
    assert (found.high - found.low < 0.2 * (one.overall.high - one.overall.low)).all()


def test_a_better_method_is_seen_on_the_same_prompts_where_its_interval_overlaps() -> None:
    rng = np.random.default_rng(1)
    chance = np.repeat(rng.uniform(0.3, 0.9, (1, 5, 15, 1, 1)), 20, axis=4)
    draw = rng.random(chance.shape)
    one, other = (estimate(answers((draw < chance + better).astype(np.float64))) for better in (0.08, 0.0))
    found = difference(one, other)
    assert one.overall.low[FORGET] < other.overall.high[FORGET]
    assert found.low[FORGET] > 0


def test_a_difference_goes_by_intervals_that_are_not_stretched_to_a_biased_score() -> None:
    """Two means of ERR whose scores lie far below the likelier values, 0.1 to either side: sqrt(0.02) for both."""
    seven = (np.full(7, value) for value in (0.17, 0.35, 0.17, 0.45, 0.0026, 0.25, 0.45))
    of = Intervals(*seven)
    one, other = (Estimates(of, of, np.array([unit]), np.zeros((1, 7))) for unit in (1, 2))
    found = difference(one, other)
    assert (found.low[0], found.high[0]) == pytest.approx((-(0.02**0.5), 0.02**0.5))


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = answers((np.random.default_rng(0).random((3, 5, 4, 2, 3)) < 0.7).astype(np.float64))
    order = np.random.default_rng(1).permutation(len(rows.success))
    shuffled = ScoredImages(**{name: values[order] for name, values in vars(rows).items()})
    assert estimate(shuffled).overall.low == pytest.approx(estimate(rows).overall.low, rel=1e-9)


@pytest.mark.parametrize("design", [Design(5, 5, 4, shared=True), Design(5, 1, 20)], ids=str)
def test_intervals_hold_the_truth_about_as_often_as_they_say(design: Design) -> None:
    """`benchmarks/coverage.py` at its full size has tighter bounds; here 0.89 is 3 standard errors below 0.95."""
    rng, rates, held = np.random.default_rng(0), np.array([0.8, 0.7, 0.6, 0.85, 0.9]), []
    for _ in range(120):
        one, other = simulate(rates, design, rng)
        found, found_other = estimate(one.answers), estimate(other.answers)
        between = difference(found, found_other)
        truth, truth_other = float(err_mean(one.truth)), float(err_mean(other.truth))
        held.append(
            [
                found.overall.low[ERR_MEAN] <= truth <= found.overall.high[ERR_MEAN],
                between.low[ERR_MEAN] <= truth - truth_other <= between.high[ERR_MEAN],
            ]
        )
    assert (np.mean(held, axis=0) > 0.89).all()
