"""Harmonic means and bootstrap intervals against closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.eval.scores.statistics import (
    clustered_mean,
    confidence_interval,
    err_mean,
    err_of_means,
    harmonic_mean,
    resample_counts,
)

unit = st.floats(0.01, 1.0)


def test_the_harmonic_mean_of_four_ones_and_a_half_is_five_sixths() -> None:
    assert harmonic_mean(np.array([1, 1, 1, 1, 0.5])) == pytest.approx(5 / 6)


def test_a_zero_on_one_axis_makes_the_harmonic_mean_zero() -> None:
    assert harmonic_mean(np.array([1, 1, 0, 1, 1])) == 0


@given(st.lists(unit, min_size=5, max_size=5))
def test_the_harmonic_mean_lies_between_the_smallest_value_and_the_arithmetic_mean(values: list[float]) -> None:
    mean = float(harmonic_mean(np.array(values)))
    assert min(values) - 1e-12 <= mean <= np.mean(values) + 1e-12


def test_the_two_aggregates_differ_where_concepts_fail_on_different_axes() -> None:
    axes = np.array([[1, 1, 1, 1, 0.5], [0.5, 1, 1, 1, 1]])
    assert err_mean(axes) == pytest.approx(5 / 6)  # each concept has 5 / (4 + 2)
    assert err_of_means(axes) == pytest.approx(5 / (3 + 2 / 0.75))  # the means are .75, 1, 1, 1, .75


def test_resampling_draws_as_many_as_there_are() -> None:
    counts = resample_counts(7, 50, np.random.default_rng(0))
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()


def _draws(successes: np.ndarray, draws: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(1)
    seeds = resample_counts(successes.shape[1], draws, rng)
    return clustered_mean(successes, np.ones_like(successes), resample_counts(len(successes), draws, rng), seeds)


def test_with_one_prompt_the_bootstrap_is_binomial_over_the_seeds() -> None:
    draws = _draws(np.array([[1.0] * 10 + [0.0] * 10]))
    assert draws.mean() == pytest.approx(0.5, abs=0.005)
    assert draws.var() == pytest.approx(0.25 / 20, rel=0.05)
    assert confidence_interval(draws) == (0.3, 0.7)  # Binomial(20, 1/2): P(X <= 5) = .0207, P(X <= 6) = .0577


def test_seeds_that_change_nothing_leave_the_spread_of_the_prompts_alone() -> None:
    draws = _draws(np.repeat([[1.0], [0.0]] * 4, 20, axis=1))  # 8 prompts, 160 images
    assert draws.var() == pytest.approx(0.25 / 8, rel=0.05)  # as for 8 images, not for 160


def test_a_two_by_two_table_spreads_as_counted_out_over_all_its_resamples() -> None:
    successes = np.array([[1.0, 0.0], [0.0, 0.0]])
    # Draws of 2 from 2 hit the first item 0, 1 or 2 times with 1/4, 1/2, 1/4; the mean is k_prompts k_seeds / 4.
    weights = {0: 0.25, 1: 0.5, 2: 0.25}
    mean = sum(weights[a] * weights[b] * a * b / 4 for a in weights for b in weights)
    square = sum(weights[a] * weights[b] * (a * b / 4) ** 2 for a in weights for b in weights)
    draws = _draws(successes)
    assert draws.mean() == pytest.approx(mean, abs=0.01)
    assert draws.var() == pytest.approx(square - mean**2, rel=0.05)
