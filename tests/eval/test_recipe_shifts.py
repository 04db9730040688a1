"""By how much a recipe shifts scores: pairs on the same questions, whose spread cancels."""

import pyarrow as pa
import pytest

from efface.concepts.prompts import AXES, TARGET_AXES
from efface.errors import UserError
from efface.eval.judging.image_table import SCHEMA
from efface.eval.scores.recipe_shifts import judged, recipe_shifts

PROMPTS, SEEDS = 10, 10


def table(recipe: str, wrong: dict[str, int], method: str = "esd", prompts: int = PROMPTS) -> pa.Table:
    """100 images an axis of one concept; on each axis the first so many are wrong, prompt by prompt."""
    rows = []
    for axis in AXES:
        for number in range(prompts * SEEDS):
            is_wrong = number < wrong.get(axis, 20)
            present = is_wrong if axis in TARGET_AXES else not is_wrong
            rows.append(
                {
                    "model_id": "m",
                    "base_id": "b",
                    "method": method,
                    "concept": "cat",
                    "axis": axis,
                    "asked_concept": "cat" if axis in TARGET_AXES else "dog",
                    "prompt": f"{axis} {number // SEEDS}",
                    "prompt_id": f"{axis} {number // SEEDS}",
                    "seed": number % SEEDS,
                    "recipe_id": recipe,
                    "judge": "j",
                    "judge_version": "1",
                    "present": present,
                    "score": 1.0,
                    "image_sha256": f"{recipe}{axis}{number}",
                    "image_error": None,
                    "held_out": None if axis in TARGET_AXES else True,
                }
            )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_an_axis_shifts_by_the_difference_of_its_shares_and_others_do_not() -> None:
    shift = recipe_shifts(table("slow", {}), table("fast", {"forget": 80}))["esd"]
    forget = shift.difference.axes["forget"]
    assert forget.difference == pytest.approx(-0.6)  # 20 of 100 right instead of 80
    assert -1 < forget.low < forget.difference < forget.high < -0.1
    assert all(shift.difference.axes[axis].difference == 0 for axis in AXES[1:])
    assert judged(shift) == "shifts"


def test_the_same_answers_are_within_a_point_however_few_images_there_are() -> None:
    half = dict.fromkeys(AXES, 50)
    assert judged(recipe_shifts(table("slow", half), table("fast", half))["esd"]) == "within a point"


def test_one_more_wrong_image_is_not_enough_to_tell() -> None:
    assert judged(recipe_shifts(table("slow", {}), table("fast", {"retain": 22}))["esd"]) == "more images would tell"


def test_the_base_is_compared_too_and_other_questions_are_a_users_mistake() -> None:
    both = [pa.concat_tables([table(recipe, {}), table(recipe, {}, "base")]) for recipe in ("slow", "fast")]
    assert set(recipe_shifts(*both)) == {"base", "esd"}
    with pytest.raises(UserError, match="'esd' was asked other questions by each recipe"):
        recipe_shifts(table("slow", {}), table("fast", {}, prompts=9))
