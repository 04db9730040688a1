"""Shown and held out: the axes go by what no method could see; what it may see is scored beside."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from efface.concepts.prompts import AXES
from efface.eval.judging.image_table import read_table, write_table
from efface.eval.scores.results import Shown
from efface.eval.scores.scoring import score_table

Row = Callable[..., dict[str, Any]]
MakeTable = Callable[..., pa.Table]


def asked(row: Row, axis: str, held_out: bool | None, presents: str, **given: Any) -> list[dict[str, Any]]:
    """A row for each letter: y, n, or ? where the answer could not be read."""
    other = {True: "Owl", False: "Dog", None: "Dog"}[held_out]
    answers = [{"y": True, "n": False, "?": None}[letter] for letter in presents]
    return [
        row(axis, present, seed=seed, asked_concept=other, held_out=held_out, prompt=f"{axis} {other}", **given)
        for seed, present in enumerate(answers)
    ]


def target(row: Row, **given: Any) -> list[dict[str, Any]]:
    return [row(axis, False, seed=seed, **given) for axis in AXES[:3] for seed in range(4)]


def cat(row: Row, **given: Any) -> list[dict[str, Any]]:
    """Held out: adjacent 1/4, retain 3/4. Shown: adjacent 4/4, retain 1/2."""
    return [
        *target(row, **given),
        *asked(row, "adjacent", True, "ynnn", **given),
        *asked(row, "adjacent", False, "yyyy", **given),
        *asked(row, "retain", True, "yyyn", **given),
        *asked(row, "retain", False, "yn", **given),
    ]


def test_the_axes_and_err_go_by_what_was_held_out(row: Row, table: MakeTable) -> None:
    scores = score_table(table(cat(row)))
    assert scores.axes == {"forget": 1, "indirect": 1, "adversarial": 1, "adjacent": 0.25, "retain": 0.75}
    assert scores.err_mean == pytest.approx(5 / (1 + 1 + 1 + 1 / 0.25 + 1 / 0.75))
    assert scores.shown == Shown({"Cat": {"adjacent": 1.0, "retain": 0.5}}, {"adjacent": 1.0, "retain": 0.5}, {})


def test_a_table_read_from_a_file_alone_says_the_same(row: Row, table: MakeTable, tmp_path: Any) -> None:
    write_table(tmp_path / "t.parquet", table(cat(row)))
    assert score_table(read_table(tmp_path / "t.parquet")) == score_table(table(cat(row)))


def test_a_table_that_does_not_say_what_was_held_out_is_scored_whole(row: Row, table: MakeTable) -> None:
    rows = [r | {"held_out": None} for r in cat(row)]
    scores = score_table(table(rows))
    assert scores.axes["adjacent"] == 5 / 8 and scores.axes["retain"] == 4 / 6
    assert scores.shown.axes == {"adjacent": None, "retain": None}
    assert scores.shown.nothing_held_out == {}


def test_an_axis_of_a_concept_without_anything_held_out_goes_by_what_was_shown_and_is_named(
    row: Row, table: MakeTable
) -> None:
    tulip = [
        *target(row, concept="Tulip", model_id="m2"),
        *asked(row, "adjacent", False, "yn", concept="Tulip", model_id="m2"),
        *asked(row, "retain", True, "yy", concept="Tulip", model_id="m2"),
    ]
    scores = score_table(table([*cat(row), *tulip]))
    assert [scores.concepts[name]["adjacent"] for name in ("Cat", "Tulip")] == [0.25, 0.5]
    assert scores.shown.concepts["Tulip"] == {"adjacent": 0.5, "retain": None}
    assert scores.shown.axes == {"adjacent": 0.75, "retain": 0.5}
    assert scores.shown.nothing_held_out == {"adjacent": ["Tulip"]}


def test_every_model_weighs_the_same_and_what_could_not_be_read_is_left_out(row: Row, table: MakeTable) -> None:
    more = [r | {"model_id": "m2"} for r in cat(row) if r["held_out"] is not False]
    more += asked(row, "retain", False, "nnnnnn?", model_id="m2")
    scores = score_table(table([*cat(row), *more]))
    assert scores.shown.axes == {"adjacent": 1.0, "retain": (0.5 + 0.0) / 2}


def test_the_base_is_scored_on_both_beside(row: Row, table: MakeTable) -> None:
    of_base = [r | {"present": True, "score": 1.0, "method": "base", "model_id": "b"} for r in cat(row)]
    scores = score_table(table([*cat(row), *of_base]))
    assert scores.base and scores.base.axes["adjacent"] == 1 and scores.base.shown.axes == {"adjacent": 1, "retain": 1}


def test_broken_images_are_counted_in_the_shown_part_too(row: Row, table: MakeTable) -> None:
    rows = cat(row)
    blanked = {"present": None, "score": None, "image_error": "blanked"}
    rows[-1] |= blanked
    assert score_table(table(rows)).invalid.images == {"blanked": 1}
