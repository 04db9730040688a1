"""The table of docs/coverage.md hides no level of rates behind a mean, and is that of the file."""

import json
from pathlib import Path
from typing import Any

from benchmarks.coverage_table import BEGIN, END, coverage_tables, put_tables
from efface.concepts.prompts import AXES

ROOT = Path(__file__).parents[2]


def measured(rates: str, repetitions: int, **held: float) -> dict[str, Any]:
    names = [f"axis {axis}" for axis in AXES] + [f"difference axis {axis}" for axis in AXES]
    names += ["err_mean", "err_of_means", "difference of err_mean", "difference of err_of_means"]
    design = {"concepts": 5, "prompts": 1, "images": 4, "shared": True, "training_seeds": 1}
    return {"rates": rates, **design, "repetitions": repetitions, "coverage": dict.fromkeys(names, 0.95) | held}


def test_too_little_at_one_level_and_too_much_at_another_do_not_cancel() -> None:
    """sqrt(.95 x .05 / 400) is .0109; the mean of .90 and .99 would be .945."""
    low = measured("weak", 400, err_mean=0.9, **{"difference axis retain": 0.985})
    _, _, row, _, summary, _, *outside = coverage_tables(
        [measured("even", 1000), low, measured("strong", 1000, err_mean=0.99)]
    ).splitlines()
    rest = "**.900**–**.990** | .950–.950 | .950–**.985** | .950–.950 | .950–.950"
    assert row == f"| 5 x 1 x 4, shared | 400 | .011 | .950–.950 | {rest} |"
    assert summary == "Outside .92 to .98 (2 of 3):"
    assert outside == [
        "- 5 x 1 x 4, shared, rates *weak* (400 tables, ± .011): err_mean .900, difference axis retain .985",
        "- 5 x 1 x 4, shared, rates *strong* (1000 tables, ± .007): err_mean .990",
    ]


def test_the_page_has_the_table_of_the_file(tmp_path: Path) -> None:
    page = ROOT / "docs" / "coverage.md"
    copy = tmp_path / "coverage.md"
    copy.write_text(page.read_text(encoding="utf-8").replace("1 x 1 x 4 |", "1 x 1 x 5 |"), encoding="utf-8")
    found = json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text())["measured"]["designs"]
    put_tables(copy, coverage_tables(found))
    assert page.read_text(encoding="utf-8") == copy.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").index(BEGIN) < page.read_text(encoding="utf-8").index(END)
