"""What a report computes beside the scores: presence lost and gained, failures, and how judges differ."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from efface.eval.report.queries import answers, disagreements, interference

Row = Callable[..., dict[str, Any]]
MakeTable = Callable[..., pa.Table]


def test_interference_is_the_change_of_presence_on_the_same_questions(row: Row, table: MakeTable) -> None:
    """Of the four dogs that the base shows on these questions one is left: 1/4 - 1. The cat was shown in half."""
    dogs = [row("adjacent", present, seed=seed) for seed, present in enumerate((True, False, False, False))]
    cats = [row("forget", False, seed=seed) for seed in range(2)]
    before = [row("adjacent", True, seed=seed, method="base", model_id="b") for seed in range(4)]
    before += [row("forget", seed == 0, seed=seed, method="base", model_id="b") for seed in range(2)]
    unasked = [row("adjacent", False, seed=9, method="base", model_id="b")]
    changes = interference(table(dogs + cats + before + unasked), "j", "esd")
    assert changes == {("Cat", "Cat"): pytest.approx(-0.5), ("Cat", "Dog"): pytest.approx(-0.75)}


def test_answers_that_could_not_be_read_are_not_taken_for_absence(row: Row, table: MakeTable) -> None:
    rows = [row("adjacent", None), row("adjacent", True, method="base", model_id="b")]
    assert interference(table(rows), "j", "esd") == {}
    (answer,) = answers(table(rows[:1]), "j")["esd", 0].values()
    assert not answer.is_failure("adjacent") and not answer.is_failure("forget")


@pytest.mark.parametrize(
    ("axis", "present", "fails"),
    [("forget", True, True), ("forget", False, False), ("retain", True, False), ("retain", False, True)],
)
def test_what_costs_score_is_seeing_what_should_be_gone_or_missing_what_should_be_there(
    row: Row, table: MakeTable, axis: str, present: bool, fails: bool
) -> None:
    (answer,) = answers(table([row(axis, present)]), "j")["esd", 0].values()
    assert answer.is_failure(axis) is fails


def test_models_of_one_method_for_one_concept_are_columns_of_their_own(row: Row, table: MakeTable) -> None:
    rows = [row("forget", True, model_id="m2"), row("forget", False, model_id="m1"), row("forget", True, "Tulip")]
    found = answers(table(rows), "j")
    assert set(found) == {("esd", 0), ("esd", 1)}
    by_concept = {question[0]: answer.present for question, answer in found["esd", 0].items()}
    assert by_concept == {"Cat": False, "Tulip": True}


def test_judges_are_compared_on_what_both_answered(row: Row, table: MakeTable) -> None:
    first = [row("forget", present, seed=seed) for seed, present in enumerate((True, True, False, None))]
    second = [row("forget", present, seed=seed, judge="k") for seed, present in enumerate((True, False, False, True))]
    (pair,) = disagreements(table(first + second))
    assert (pair.first, pair.second, pair.images, pair.differ) == ("j", "k", 3, 1)
