"""Harmonic means and intervals against closed forms, tables and published examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.eval.scores.err import err_mean, err_of_means, harmonic_mean, harmonic_mean_bias
from efface.eval.scores.intervals import cluster_quantile, difference_interval, t_quantile, wilson_interval

Z = np.array(1.959964)

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


@given(st.lists(unit, min_size=5, max_size=5), st.integers(0, 4))
def test_the_bias_is_that_of_a_value_that_is_off_a_little_to_either_side(values: list[float], moved: int) -> None:
    off = 1e-3 * values[moved]
    step = off * np.eye(5)[moved]
    mean = (harmonic_mean(values + step) + harmonic_mean(values - step)) / 2 - harmonic_mean(np.array(values))
    bias = harmonic_mean_bias(np.array(values), off**2 * np.eye(5)[moved])
    assert bias == pytest.approx(float(mean), rel=1e-3, abs=1e-12)


def test_quantiles_of_student_are_those_of_the_tables() -> None:
    df = np.array([1, 2, 4, 10, 30, np.inf])
    assert t_quantile(df) == pytest.approx([12.7062, 4.3027, 2.7764, 2.2281, 2.0423, 1.9600], rel=1e-3)
    assert t_quantile(np.array(0.5)) == t_quantile(np.array(1.0))


def test_few_clusters_widen_an_interval_and_many_images_do_not_narrow_it() -> None:
    """5 clusters of 4 images: 1.960 * 2.7764 / 2.0930 (t of 4 and of 19)."""
    widened = cluster_quantile(np.array([4.0, np.inf]), np.array([20.0, 20.0]))
    assert widened == pytest.approx([2.600, 1.960], rel=1e-3)


def test_wilson_of_eight_in_ten_is_as_published() -> None:
    low, high = wilson_interval(np.array(0.8), np.array(10.0), Z)  # Brown, Cai and DasGupta 2001
    assert (float(low), float(high)) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_the_difference_of_independent_shares_is_that_of_newcombe() -> None:
    """56 of 70 and 48 of 80: 0.0524 to 0.3339 (Newcombe 1998, table II, example (a), method 10)."""
    one, other = (
        (np.array(k / n), *wilson_interval(np.array(k / n), np.array(float(n)), Z)) for k, n in ((56, 70), (48, 80))
    )
    low, high = difference_interval(one, other, np.array(0.0))
    assert (float(low), float(high)) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_errors_that_are_the_same_cancel_in_a_difference() -> None:
    one, other = ((np.array(x), np.array(x - 0.1), np.array(x + 0.1)) for x in (0.7, 0.5))
    assert difference_interval(one, other, np.array(1.0)) == pytest.approx((0.2, 0.2), abs=1e-7)
    assert difference_interval(one, other, np.array(0.0)) == pytest.approx((0.2 - 0.02**0.5, 0.2 + 0.02**0.5))
