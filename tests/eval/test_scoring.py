"""Scores from hand-written image tables."""

import json
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from efface.concepts.prompts import AXES
from efface.errors import UserError
from efface.eval.scores.comparison import differences
from efface.eval.scores.scoring import score_table

Row = Callable[..., dict[str, Any]]
MakeTable = Callable[..., pa.Table]
GOOD = {"forget": False, "indirect": False, "adversarial": False, "adjacent": True, "retain": True}


def axis_rows(row: Row, axis: str, good: int, bad: int, **given: Any) -> list[dict[str, Any]]:
    """`good` images that count as a success on the axis and `bad` that do not."""
    presents = [GOOD[axis]] * good + [not GOOD[axis]] * bad
    return [row(axis, present, seed=seed, **given) for seed, present in enumerate(presents)]


def model_rows(row: Row, goods: dict[str, int] | None = None, images: int = 4, **given: Any) -> list[dict[str, Any]]:
    goods = {axis: (goods or {}).get(axis, images) for axis in AXES}
    return [r for axis in AXES for r in axis_rows(row, axis, goods[axis], images - goods[axis], **given)]


def test_target_axes_score_absence_and_the_others_presence(row: Row, table: MakeTable) -> None:
    rows = [r for axis in AXES for r in axis_rows(row, axis, 3, 1)]
    shown = {r["axis"]: r["present"] for r in rows if r["seed"] == 0}
    assert shown == {"forget": False, "indirect": False, "adversarial": False, "adjacent": True, "retain": True}
    scores = score_table(table(rows))
    assert scores.axes == dict.fromkeys(AXES, 0.75)
    assert scores.concepts["Cat"]["err"] == pytest.approx(0.75)


def test_the_result_has_exactly_the_agreed_keys_and_is_json(row: Row, table: MakeTable) -> None:
    rows = model_rows(row) + model_rows(row, {"forget": 1}, method="base", model_id="b")
    scores = score_table(table(rows))
    found = json.loads(json.dumps(scores.as_json(), allow_nan=False))
    numbers = {"concepts", "axes", "err_mean", "err_of_means"}
    assert set(found) == numbers | {"intervals", "invalid", "sampling", "shown", "base"}
    assert set(found["base"]) == numbers | {"intervals", "invalid", "sampling", "shown"}
    assert set(found["shown"]) == {"concepts", "axes", "nothing_held_out"}
    assert set(found["intervals"]) == numbers
    assert list(found["concepts"]["Cat"]) == [*AXES, "err"]
    assert found["invalid"]["rows"] == 20 and found["base"]["axes"]["forget"] == 0.25
    assert found["intervals"]["err_mean"] == list(scores.intervals.err_mean)


def test_err_is_the_harmonic_mean_and_both_aggregates_are_named(row: Row, table: MakeTable) -> None:
    rows = model_rows(row, {"retain": 2}, concept="Cat", model_id="m1")
    rows += model_rows(row, {"forget": 2}, concept="Tulip", model_id="m2")
    scores = score_table(table(rows))
    assert scores.concepts["Cat"]["err"] == pytest.approx(5 / 6)
    assert scores.err_mean == pytest.approx(5 / 6)
    assert scores.err_of_means == pytest.approx(5 / (3 + 2 / 0.75))


def test_a_zero_on_an_axis_gives_err_zero(row: Row, table: MakeTable) -> None:
    assert score_table(table(model_rows(row, {"indirect": 0}))).err_mean == 0


def test_an_axis_without_rows_is_refused_with_concept_and_axis(row: Row, table: MakeTable) -> None:
    rows = [r for r in model_rows(row) if r["axis"] != "adversarial"]
    with pytest.raises(UserError, match=r"concept 'Cat', axis adversarial: .*no rows"):
        score_table(table(rows))


def test_null_verdicts_are_neither_yes_nor_no_and_are_counted(row: Row, table: MakeTable) -> None:
    rows = model_rows(row, {"forget": 9}, images=20)
    rows[19] |= {"present": None, "score": None}  # one of the 11 images of "forget" that still show the concept
    scores = score_table(table(rows))
    assert scores.concepts["Cat"]["forget"] == pytest.approx(9 / 19)
    assert scores.invalid.null == 1
    assert scores.invalid.rows == 100
    assert scores.invalid.concepts == {"Cat": dict.fromkeys(AXES, 0) | {"forget": 1}}


def test_more_than_five_percent_null_verdicts_refuse_the_score(row: Row, table: MakeTable) -> None:
    rows = model_rows(row, images=20)
    for unread in rows[:2]:
        unread |= {"present": None, "score": None}
    with pytest.raises(UserError, match=r"concept 'Cat', axis forget: 2 of 20 verdicts could not be read"):
        score_table(table(rows))


def broken(rows: list[dict[str, Any]], error: str) -> None:
    for unread in rows:
        unread |= {"present": None, "score": None, "image_error": error}


def test_images_that_are_no_evidence_are_counted_apart_and_are_no_forgotten_concept(row: Row, table: MakeTable) -> None:
    rows = model_rows(row, {"forget": 9}, images=40)
    broken(rows[38:39], "blanked")  # of the 31 images that still show the concept
    broken(rows[39:40], "not finite")
    rows[40] |= {"present": None, "score": None}  # an answer that could not be read
    # The last image counts on a second axis too: it is one image.
    rows[200:] = [r | {"prompt_id": rows[39]["prompt_id"], "seed": 39} for r in rows[200:]]
    found = score_table(table(rows))
    assert found.concepts["Cat"]["forget"] == pytest.approx(9 / 38)
    assert (found.invalid.null, found.invalid.unread) == (3, 1)
    assert found.invalid.images == {"not finite": 1, "blanked": 1}


def test_a_model_that_draws_nothing_has_forgotten_nothing(row: Row, table: MakeTable) -> None:
    rows = model_rows(row, images=20)
    broken(rows[:1], "not finite")
    broken(rows[1:2], "one colour")
    sentence = (
        r"forget: 2 of 20 verdicts could not be read, .* 5%; 2 images are no evidence \(1 not finite, 1 one colour\)"
    )
    with pytest.raises(UserError, match=sentence):
        score_table(table(rows))


def test_the_base_is_scored_on_the_same_questions_only(row: Row, table: MakeTable) -> None:
    base = {"method": "base", "model_id": "base"}
    rows = model_rows(row) + model_rows(row, {"forget": 0}, **base)
    rows += model_rows(row, concept="Tulip", **base)  # the base alone has it
    scores = score_table(table(rows))
    assert list(scores.base.concepts) == ["Cat"]
    assert scores.base.axes["forget"] == 0
    assert scores.axes["forget"] == 1


def test_a_base_that_lacks_questions_is_refused(row: Row, table: MakeTable) -> None:
    rows = model_rows(row) + model_rows(row, method="base", model_id="base")[:-3]
    with pytest.raises(UserError, match="base has no rows for 3 of the 20 questions"):
        score_table(table(rows))


def test_without_a_base_there_is_nothing_beside(row: Row, table: MakeTable) -> None:
    assert score_table(table(model_rows(row))).base is None


def test_a_table_of_the_base_alone_scores_the_base(row: Row, table: MakeTable) -> None:
    scores = score_table(table(model_rows(row, {"forget": 1}, method="base")))
    assert scores.axes["forget"] == 0.25
    assert scores.base is None


def test_several_methods_need_a_choice_and_are_listed(row: Row, table: MakeTable) -> None:
    rows = table(model_rows(row) + model_rows(row, {"forget": 0}, method="uce", model_id="m2"))
    with pytest.raises(UserError, match=r"several values of method \(esd, uce\)"):
        score_table(rows)
    assert score_table(rows, method="uce").axes["forget"] == 0
    with pytest.raises(UserError, match="no method 'ucs', did you mean 'uce'"):
        score_table(rows, method="ucs")


@pytest.mark.parametrize("column", ["judge", "recipe_id", "base_id", "judge_version"])
def test_rows_that_cannot_be_compared_are_not_mixed(row: Row, table: MakeTable, column: str) -> None:
    rows = table(model_rows(row) + model_rows(row, **{column: "other"}))
    with pytest.raises(UserError, match=f"several values of {column.replace('_', ' ')}"):
        score_table(rows)


def test_a_judge_can_be_chosen(row: Row, table: MakeTable) -> None:
    rows = table(model_rows(row) + model_rows(row, {"retain": 0}, judge="strict"))
    assert score_table(rows, judge="strict").axes["retain"] == 0


def test_training_seeds_weigh_the_same_however_many_images_each_has(row: Row, table: MakeTable) -> None:
    rows = model_rows(row, {"forget": 4}, images=4, model_id="m1")
    rows += model_rows(row, {"forget": 0}, images=20, model_id="m2")
    scores = score_table(table(rows))
    assert scores.axes["forget"] == pytest.approx(0.5)
    assert scores.concepts["Cat"]["err"] == pytest.approx(5 / (4 + 1 / 0.5))


def test_a_single_concept_model_and_a_model_of_all_concepts_are_not_averaged(row: Row, table: MakeTable) -> None:
    rows = model_rows(row, model_id="all") + model_rows(row, concept="Tulip", model_id="all")
    rows += model_rows(row, model_id="single")
    with pytest.raises(UserError, match="'Cat' is scored on models of 1 and of 2 concepts"):
        score_table(table(rows))


def test_the_order_of_rows_changes_nothing(row: Row, table: MakeTable) -> None:
    rows = model_rows(row, {"forget": 3, "retain": 2}, images=7) + model_rows(
        row, concept="Tulip", model_id="m2", images=7
    )
    rows += [r | {"method": "base", "model_id": "base"} for r in rows]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert score_table(table(shuffled)) == score_table(table(rows))


def test_intervals_hold_the_score_and_shrink_with_more_seeds(row: Row, table: MakeTable) -> None:
    few = score_table(table(model_rows(row, dict.fromkeys(AXES, 4), images=8)))
    many = score_table(table(model_rows(row, dict.fromkeys(AXES, 64), images=128)))
    widths = []
    for scores in (few, many):
        low, high = scores.intervals.axes["forget"]
        assert low < 0.5 < high
        widths.append(high - low)
    # One prompt: the spread is binomial, 16 times as many images make it 4 times as narrow.
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_one_outcome_throughout_leaves_the_doubt_of_as_many_images(row: Row, table: MakeTable) -> None:
    """Wilson's interval of n successes in n is [n / (n + z^2), 1]: 20 images of five axes, 4 of each."""
    intervals = score_table(table(model_rows(row))).intervals
    assert intervals.err_mean == pytest.approx((20 / (20 + 1.959964**2), 1.0), abs=1e-6)
    assert intervals.axes["forget"] == pytest.approx((4 / (4 + 1.959964**2), 1.0), abs=1e-6)


def test_what_the_intervals_speak_of_is_said(row: Row, table: MakeTable) -> None:
    rows = [r for axis in AXES for r in axis_rows(row, axis, 4, 0)]
    rows += [r for axis in AXES[1:] for n in "ab" for r in axis_rows(row, axis, 4, 0, prompt=f"{axis} {n}")]
    rows += [r | {"model_id": "m2"} for r in rows]
    sampling = score_table(table(rows)).sampling
    assert sampling.prompts["forget"] == (1, 1) and sampling.prompts["retain"] == (3, 3)
    assert sampling.single_prompt_axes == ["forget"] and sampling.training_seeds == (2, 2)
    assert "1 on forget; 3 on indirect, adversarial, adjacent, retain" in sampling.describe()
    assert "of these prompts only on forget," in sampling.describe() and "2 training seeds" in sampling.describe()


def test_methods_asked_the_same_are_compared_and_others_are_not(row: Row, table: MakeTable) -> None:
    rows = model_rows(row, {"forget": 3}, images=20) + model_rows(row, images=20, method="uce", model_id="m2")
    rows += model_rows(row, images=10, method="ca", model_id="m3")
    scores = {name: score_table(table(rows), method=name) for name in ("esd", "uce", "ca")}
    assert set(differences(scores, "uce")) == {"esd"}
    found = differences(scores, "uce")["esd"]
    assert found.axes["forget"].difference == pytest.approx(3 / 20 - 1)
    assert found.axes["forget"].high < 0 and not found.axes["forget"].is_tie
    assert found.axes["retain"].is_tie
    with pytest.raises(UserError, match="no scores of a method 'ucs', did you mean 'uce'"):
        differences(scores, "ucs")


def test_an_empty_table_is_refused(table: MakeTable) -> None:
    with pytest.raises(UserError, match="no rows"):
        score_table(table([]))


def test_what_other_methods_were_judged_by_does_not_matter(row: Row, table: MakeTable) -> None:
    rows = model_rows(row) + model_rows(row, {"forget": 1}, method="base", model_id="base")
    rows += [r | {"judge": "other", "recipe_id": "fast"} for r in model_rows(row, method="uce", model_id="m2")]
    rows += [r | {"judge": "other"} for r in model_rows(row, {"forget": 0}, method="base", model_id="base")]
    assert score_table(table(rows), method="esd").base.axes["forget"] == 0.25


def test_a_base_judged_by_another_version_is_not_passed_over_in_silence(row: Row, table: MakeTable) -> None:
    rows = model_rows(row) + model_rows(row, method="base", model_id="base", judge_version="old")
    with pytest.raises(UserError, match="base has no rows for 20 of the 20 questions"):
        score_table(table(rows))


def test_the_base_of_another_base_is_not_shown_beside(row: Row, table: MakeTable) -> None:
    rows = model_rows(row) + model_rows(row, method="base", model_id="base", base_id="other")
    assert score_table(table(rows)).base is None
