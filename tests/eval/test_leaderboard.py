"""The leaderboard's rows, CSV and table."""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from efface.concepts.prompts import AXES
from efface.eval.judging.image_table import SCHEMA
from efface.eval.scores.jackknife import Estimates, Intervals
from efface.eval.scores.leaderboard import differences_table, leaderboard, notes, rich_table, write_csv
from efface.eval.scores.results import Interval, Invalid, Range, Sampling, Scores, Shown, Summary
from efface.eval.scores.scoring import score_table
from efface.eval.weight_change_values import Norms, WeightChange


def estimates(err: float) -> Estimates:
    score, low, high = (np.full(7, err + off) for off in (0, -0.1, 0.1))
    of = Intervals(score, score, low, high, np.full(7, 0.0026), low, high)
    return Estimates(of, of, np.zeros(0, dtype=np.int64), np.zeros((0, 7)))


def score(
    err: float,
    base: Scores | None = None,
    questions: str = "",
    shown: tuple[float | None, float | None] = (None, None),
    **invalid: Any,
) -> Scores:
    """Two concepts, every axis `err`, with an interval of 0.1 to either side; unpaired with any other."""

    def numbers(value: Any, more: Any) -> dict[str, Any]:
        return {
            "concepts": {"Cat": {}, "Tulip": {}},
            "axes": {axis: value for axis in AXES},
            "err_mean": value,
            "err_of_means": more,
        }

    interval = Interval(err - 0.1, err + 0.1)
    return Scores(
        **numbers(err, err + 0.01),
        intervals=Summary(**numbers(interval, interval)),
        invalid=Invalid(**{"null": 0, "rows": 0, "unread": 0, "images": {}, "concepts": {}, **invalid}),
        sampling=Sampling(dict.fromkeys(AXES, Range(5, 5)), Range(1, 1)),
        shown=Shown({}, {"adjacent": shown[0], "retain": shown[1]}, {}),
        base=base,
        estimates=estimates(err),
        questions=questions,
    )


NORMS = Norms(3e-9, 2.5, 1.2e-3, 1.0, 1, 2)
CHANGE = WeightChange(NORMS, replace(NORMS, challenge=4e-9, relative_l2=1.3e-3), {})


def test_the_base_comes_first_then_the_best_err() -> None:
    rows = leaderboard({"uce": score(0.4, score(0.9)), "esd": score(0.6, score(0.9)), "ca": score(0.4, score(0.9))})
    assert [row.method for row in rows] == ["base", "esd", "ca", "uce"]


def test_bases_asked_other_questions_are_shown_apart() -> None:
    rows = leaderboard({"uce": score(0.4, score(0.9)), "esd": score(0.6, score(0.8))})
    assert [row.method for row in rows] == ["base", "base (esd)", "esd", "uce"]


def test_a_row_holds_scores_interval_change_and_seconds() -> None:
    (row,) = leaderboard({"esd": score(0.5)}, {"esd": CHANGE}, {"esd": 12.5})
    assert (row.concepts, row.forget, row.err_mean, row.err_of_means) == (2, 0.5, 0.5, 0.51)
    assert (row.low, row.high) == (0.4, 0.6)
    assert (row.challenge_all, row.challenge_unet, row.global_l2, row.relative_l2) == (3e-9, 4e-9, 2.5, 1.2e-3)
    assert row.seconds == 12.5


def test_the_csv_keeps_every_digit_and_leaves_the_unknown_empty(tmp_path: Path) -> None:
    write_csv(tmp_path / "board.csv", leaderboard({"esd": score(1 / 3, score(0.9))}, {"esd": CHANGE}))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "board.csv").read_text())))
    assert [row["method"] for row in rows] == ["base", "esd"]
    assert float(rows[1]["err_mean"]) == 1 / 3
    assert float(rows[1]["challenge_all"]) == 3e-9
    assert (rows[0]["challenge_all"], rows[1]["seconds"]) == ("", "")


def test_what_methods_may_see_stands_beside_what_was_held_out_and_counts_nowhere(tmp_path: Path) -> None:
    board = leaderboard({"uce": score(0.4, score(0.9), shown=(1.0, 0.75)), "esd": score(0.6)})
    assert [row.method for row in board] == ["base", "esd", "uce"]
    assert [(row.adjacent, row.adjacent_shown, row.retain_shown) for row in board] == [
        (0.9, None, None),
        (0.6, None, None),
        (0.4, 1.0, 0.75),
    ]
    write_csv(tmp_path / "board.csv", board)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "board.csv").read_text())))
    assert [(row["adjacent_shown"], row["retain_shown"]) for row in rows] == [("", ""), ("", ""), ("1.0", "0.75")]
    heads = [column.header for column in rich_table(board).columns]
    assert heads[4:8] == ["adver-\nsarial", "adja-\ncent", "retain", "adja-\ncent\nshown"]
    assert "adja-\ncent\nshown" not in [column.header for column in rich_table(board, 80).columns]
    assert "adja-\ncent\nshown" not in [column.header for column in rich_table(board[:2]).columns]


def test_images_that_are_no_evidence_are_counted_apart_from_answers_that_could_not_be_read(tmp_path: Path) -> None:
    broken = score(0.5, images={"not finite": 3, "blanked": 2}, unread=4)
    board = leaderboard({"esd": broken, "uce": score(0.4)})
    assert [(row.method, row.broken, row.unread) for row in board] == [("esd", 5, 4), ("uce", 0, 0)]
    write_csv(tmp_path / "board.csv", board)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "board.csv").read_text())))
    assert [(row["broken"], row["unread"]) for row in rows] == [("5", "4"), ("0", "0")]
    for width in (70, 100):
        console = Console(width=width, file=io.StringIO())
        console.print(rich_table(board, width))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
        assert any("bro-" in line for line in lines)
        assert next(line for line in lines if "esd" in line).rstrip().endswith(" 5")
    assert "bro-\nken" not in [column.header for column in rich_table(leaderboard({"uce": score(0.4)})).columns]


def test_a_label_acts_neither_on_a_terminal_nor_on_a_spreadsheet(tmp_path: Path) -> None:
    board = leaderboard({"=cmd|'/c calc'!A1": score(0.5), "[red]x\x1b[2J[/red]": score(0.4)})
    write_csv(tmp_path / "board.csv", board)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "board.csv").read_text())))
    assert rows[0]["method"] == "'=cmd|'/c calc'!A1"
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(rich_table(board))
    assert "[red]x\\x1b[2J[/red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_fits_a_hundred_columns_with_nothing_cut() -> None:
    label = "esd eta=2 steps=200 a long label"
    board = leaderboard({label: score(0.601, score(0.9)), "uce": score(0.5)}, {label: CHANGE}, {label: 12345.0})
    console = Console(width=100, file=io.StringIO())
    console.print(rich_table(board))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for part in ("0.601", "0.501-0.701", "0.611", "1.2e-03", "12345", "base", "esd eta=2", "steps=200 a", "long label"):
        assert part in text


def test_each_method_is_compared_with_the_best_and_ties_are_marked() -> None:
    """Independent, each 0.1 to either side: the difference has sqrt(0.02) = 0.141 to either side."""
    scores = {"uce": score(0.8), "esd": score(0.7), "ca": score(0.5), "other": score(0.6, questions="others")}
    best, esd, _, ca = rows = leaderboard(scores)
    assert [row.method for row in rows] == ["uce", "esd", "other", "ca"] and best.compared_to == ""
    assert (esd.compared_to, round(esd.difference or 0, 3), esd.ties, ca.ties) == ("uce", -0.1, True, False)
    assert (round(esd.difference_low or 0, 3), round(esd.difference_high or 0, 3)) == (-0.241, 0.041)
    assert rows[2].difference is None and not rows[2].ties
    console = Console(width=100, file=io.StringIO())
    console.print(rich_table(rows), differences_table(rows))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "-0.100=" in printed and "-0.300 " in printed and "-0.241 to 0.041" in printed
    assert any("a tie with uce" in note for note in notes(scores, rows))


def test_a_row_says_of_what_its_interval_speaks() -> None:
    single = Sampling(dict.fromkeys(AXES, Range(5, 5)) | {"forget": Range(1, 1)}, Range(1, 1))
    scores = {"uce": replace(score(0.5), sampling=single)}
    rows = leaderboard(scores)
    assert (rows[0].prompts, rows[0].single_prompt_axes, rows[0].training_seeds) == ("1-5", "forget", "1")
    (note,) = notes(scores, rows)
    assert "of these prompts only on forget," in note and "one training seed only" in note


def test_axes_on_which_nothing_was_held_out_are_named(row: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """A table in which methods may have seen everything that should stay: its shown scores are its scores."""

    def scored(concept: str, held_out: dict[str, bool]) -> list[dict[str, Any]]:
        return [row(axis, True, concept, seed, held_out=held_out.get(axis)) for axis in AXES for seed in range(4)]

    kept = {"adjacent": False, "retain": False}
    both = {"uce": [*scored("Cat", kept), *scored("Tulip", kept)]}
    some = {"uce": [*scored("Cat", kept), *scored("Tulip", {"adjacent": True, "retain": False})]}
    none = {"uce": scored("Cat", dict.fromkeys(kept, True))}
    for tables, axes, said in (
        (both, "adjacent retain", ["on the axis adjacent: it is", "on the axis retain: it is"]),
        (some, "adjacent retain", ["on the axis adjacent of Cat: it is", "on the axis retain: it is"]),
        (none, "", []),
    ):
        scores = {label: score_table(pa.Table.from_pylist(rows, schema=SCHEMA)) for label, rows in tables.items()}
        board = leaderboard(scores)
        lines = [line for line in notes(scores, board) if line.startswith("nothing is held out")]
        assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True))
        write_csv(tmp_path / "board.csv", board)
        (found,) = csv.DictReader(io.StringIO((tmp_path / "board.csv").read_text()))
        assert found["shown_only_axes"] == axes
