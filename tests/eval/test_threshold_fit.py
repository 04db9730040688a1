"""Where a threshold is put, and what that costs against the best there is."""

from statistics import NormalDist

import numpy as np
import pytest

from efface.eval.calibration.threshold_fit import MIN_IMAGES, best_threshold

NORMAL = NormalDist()


def probability(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def test_scores_far_apart_are_cut_in_the_middle_on_the_scale_of_log_odds() -> None:
    own, others = probability(np.array([3.0, 4, 5])), probability(np.array([-5.0, -4, -3]))
    assert best_threshold(own, others) == pytest.approx(0.5, abs=0.02)


def test_both_errors_weigh_alike_however_many_images_each_side_has() -> None:
    """Of two normal distributions the best cut lies midway, with 20 images of one and 2,000 of the other too."""
    rng = np.random.default_rng(0)
    cuts = [
        best_threshold(probability(rng.normal(2, 1, n)), probability(rng.normal(0, 1, m)))
        for n, m in ((2000, 2000), (2000, 20), (20, 2000))
    ]
    assert np.log(np.array(cuts) / (1 - np.array(cuts))) == pytest.approx([1, 1, 1], abs=0.4)


def test_scores_that_are_all_the_same_still_have_a_threshold() -> None:
    assert best_threshold(np.array([0.5]), np.array([0.5])) == 0.5


def test_probabilities_of_0_and_1_have_one_too() -> None:
    assert best_threshold(np.array([1.0, 1.0]), np.array([0.0, 0.0])) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("separation", [1.0, 2.0, 3.0])
def test_twenty_images_lose_at_most_a_fiftieth_of_the_best_balanced_accuracy(separation: float) -> None:
    """Scores of two normal distributions of variance 1, whose best cut is known: benchmarks/calibration.py has more."""
    rng = np.random.default_rng(1)
    best = NORMAL.cdf(separation / 2)
    lost = []
    for _ in range(60):
        cut = best_threshold(probability(rng.normal(separation, 1, 20)), probability(rng.normal(0, 1, 200)))
        log_odds = float(np.log(cut / (1 - cut)))
        lost.append(best - (NORMAL.cdf(separation - log_odds) + NORMAL.cdf(log_odds)) / 2)
    assert min(lost) >= -1e-9 and np.mean(lost) < 0.02
    assert MIN_IMAGES <= 20
