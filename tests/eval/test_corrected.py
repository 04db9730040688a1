"""Scores corrected for a judge's errors: against formulas by hand, and against worlds where the truth is known."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from efface.eval.calibration.judge_accuracy import Accuracy, rogan_gladen, together, wilson
from efface.eval.scores.corrected import corrected_scores
from efface.eval.scores.scoring import score_table

Row = Callable[..., dict[str, Any]]
MakeTable = Callable[..., pa.Table]


def measured(found: int, own: int, passed: int, others: int) -> Accuracy:
    return Accuracy.counted(found, own, passed, others, 0)


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        (81, 263, (0.2553, 0.3662)),  # Newcombe (1998), table I, method 3
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilsons_interval_is_that_of_newcombes_table(successes: int, trials: int, interval: Any) -> None:
    assert wilson(successes, trials) == pytest.approx(interval, abs=5e-5)


def test_an_accuracy_has_its_intervals_and_several_are_counted_together() -> None:
    one, other = measured(18, 20, 190, 200), measured(5, 10, 90, 100)
    assert (one.recall_interval, one.specificity_interval) == (wilson(18, 20), wilson(190, 200))
    assert together([one, other]) == measured(23, 30, 280, 300)
    assert measured(0, 0, 3, 4).recall_interval is None


def test_with_very_many_images_the_corrected_share_is_that_of_rogan_and_gladen() -> None:
    share = rogan_gladen(0.5, 10**8, measured(8 * 10**7, 10**8, 9 * 10**7, 10**8))
    assert share and share.value == pytest.approx((0.5 + 0.9 - 1) / (0.8 + 0.9 - 1), abs=1e-6)
    assert share.image_variance == pytest.approx(0.25 / 10**8 / 0.7**2, rel=1e-3)


def test_a_judge_that_is_no_better_than_chance_corrects_nothing() -> None:
    assert rogan_gladen(0.5, 20, measured(11, 20, 9, 20)) is None
    assert rogan_gladen(0.5, 20, measured(0, 0, 9, 20)) is None


@pytest.mark.parametrize("truth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("separation", [1.0, 2.0, 3.0])
def test_corrected_shares_are_unbiased_and_their_intervals_hold_the_truth(truth: float, separation: float) -> None:
    """A judge of two normal distributions cut midway, measured on 20 and 200 images, and 20 images judged by it.

    The share of verdicts itself is off by up to 0.31 there.
    """
    rng = np.random.default_rng(2)
    right = float(np.mean(rng.normal(separation, 1, 10**6) >= separation / 2))
    values, held = [], 0
    for _ in range(3000):
        accuracy = measured(rng.binomial(20, right), 20, rng.binomial(200, right), 200)
        present = rng.binomial(20, truth * right + (1 - truth) * (1 - right))
        share = rogan_gladen(present / 20, 20, accuracy)
        if share is None:
            continue
        values.append(share.value)
        half = 1.96 * sqrt(share.image_variance + share.by_recall**2 + share.by_specificity**2)
        held += share.value - half <= truth <= share.value + half
    assert len(values) > 2900
    assert np.mean(values) == pytest.approx(truth, abs=0.02)
    assert held / len(values) > 0.92


def rows(row: Row, asked: str, axis: str, presents: str, **given: Any) -> list[dict[str, Any]]:
    return [
        row(axis, {"y": True, "n": False, "?": None}[p], seed=seed, asked_concept=asked, **given)
        for seed, p in enumerate(presents)
    ]


EXACT = {name: measured(10**7, 10**7, 10**7, 10**7) for name in ("Cat", "Dog", "Owl")}


def table_of(row: Row, table: MakeTable) -> pa.Table:
    of_cat = [r for axis in ("forget", "indirect", "adversarial") for r in rows(row, "Cat", axis, "nnny")]
    return table([*of_cat, *rows(row, "Dog", "adjacent", "yyn?"), *rows(row, "Owl", "retain", "yyyn")])


def test_by_a_judge_that_is_always_right_a_corrected_score_is_the_plain_one(row: Row, table: MakeTable) -> None:
    rows_ = [r for r in table_of(row, table).to_pylist() if r["present"] is not None]
    plain, corrected = score_table(table(rows_)), corrected_scores(table(rows_), EXACT)
    assert corrected.rates_of == "each concept"
    for axis, score in plain.axes.items():
        assert corrected.axes[axis].score == pytest.approx(score, abs=1e-6)
        low, high = corrected.axes[axis].interval
        assert low < score < high
    assert corrected.concepts["Cat"]["adjacent"] == corrected.axes["adjacent"]


def test_a_judge_that_misses_and_sees_too_much_is_corrected_concept_by_concept(row: Row, table: MakeTable) -> None:
    n = 10**7
    accuracy = {**EXACT, "Cat": measured(8 * 10**6, n, 9 * 10**6, n), "Dog": measured(9 * 10**6, n, n, n)}
    found = corrected_scores(table_of(row, table), accuracy).axes
    assert found["forget"].score == pytest.approx(1 - (0.25 + 0.9 - 1) / 0.7, abs=1e-5)
    assert found["adjacent"].score == pytest.approx(2 / 3 / 0.9, abs=1e-5)
    assert found["retain"].score == pytest.approx(0.75, abs=1e-6)


def test_of_concepts_on_which_few_images_were_measured_the_rates_are_those_of_all(row: Row, table: MakeTable) -> None:
    accuracy = {name: measured(2, 2, 20, 20) for name in ("Cat", "Dog")} | {"Owl": measured(1, 2, 20, 20)}
    found = corrected_scores(table_of(row, table), accuracy)
    assert found.rates_of == "all concepts"
    share = rogan_gladen(0.25, 4, measured(5, 6, 60, 60))
    assert share and found.axes["forget"].score == pytest.approx(1 - share.value)


def test_what_a_calibration_leaves_open_does_not_average_out_over_concepts_that_it_was_measured_on_together(
    row: Row, table: MakeTable
) -> None:
    """Two axes cells of one concept move together with its recall, those of two concepts do not."""
    accuracy = {name: measured(15, 20, 180, 200) for name in ("Cat", "Dog", "Owl")}
    many = 10**4
    one = [row("retain", True, seed=s, asked_concept="Dog", concept=c) for c in ("Cat", "Owl") for s in range(many)]
    two = [
        row("retain", True, seed=s, asked_concept=asked, concept=c)
        for c, asked in (("Cat", "Dog"), ("Owl", "Cat"))
        for s in range(many)
    ]
    widths = [
        high - low for low, high in (corrected_scores(table(r), accuracy).axes["retain"].interval for r in (one, two))
    ]
    assert widths[0] == pytest.approx(sqrt(2) * widths[1], rel=0.02)
