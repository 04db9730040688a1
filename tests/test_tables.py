"""CSV and text tables: numbers in full, and no cell that acts on a spreadsheet or a terminal."""

import csv
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from efface.cluster.search.pareto import write_results
from efface.cluster.search.result import TrialResult, TrialRow
from efface.csv_tables import csv_table
from efface.text_tables import name_column, number_columns, text_table


@pytest.mark.parametrize("sign", "=+-@")
def test_a_cell_that_begins_like_a_formula_is_text_and_a_negative_number_stays_one(sign: str) -> None:
    header, row = csv.reader(io.StringIO(csv_table(["name", "change", "note"], [(f"{sign}1+1", -1 / 3, None)])))
    assert header == ["name", "change", "note"] and row == [f"'{sign}1+1", str(-1 / 3), ""]


def test_the_settings_of_a_trial_are_no_formulas_either(tmp_path: Path) -> None:
    row = TrialRow(1, "0123", {"prompt": "=cmd"}, True, TrialResult("failed", -1.0, reason="@x"))
    base = SimpleNamespace(err_mean=0.0, intervals=SimpleNamespace(err_mean=(0.0, 0.0)), axes={})
    write_results(SimpleNamespace(root=tmp_path), [row], [], base)  # type: ignore[arg-type]
    (written,) = csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text()))
    assert (written["prompt"], written["reason"], written["score"]) == ("'=cmd", "'@x", "-1.0")


def test_a_cell_of_a_text_table_is_no_markup_and_rows_without_a_style_are_there_too() -> None:
    table = text_table(
        [name_column("name", 12), *number_columns("n")], [("[red]x\x1b[2J", 1), (["a", "b"], None)], ["bold"]
    )
    console = Console(width=60, file=io.StringIO())
    console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]x\\x1b[2" in printed and "a, b" in printed and "None" not in printed
