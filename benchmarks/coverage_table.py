"""The tables of docs/coverage.md: of each design, how often intervals held the truth at the level of rates where they
did so least often, and where they did most often.

A mean over levels would hide that one holds too little and another too much. Of several axes the least and the most
count as well.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.simulated_answers import Design
from efface.concepts.prompts import AXES

LOWEST, HIGHEST = 0.92, 0.98
SCORES = {
    "axis": [f"axis {axis}" for axis in AXES],
    "`err_mean`": ["err_mean"],
    "`err_of_means`": ["err_of_means"],
    "difference of an axis": [*(f"difference axis {axis}" for axis in AXES), "difference of axes"],
    "of `err_mean`": ["difference of err_mean"],
    "of `err_of_means`": ["difference of err_of_means"],
}
"""The columns, and what they are over; "difference of axes" is the mean of five, in files that have no other."""
BEGIN, END = "<!-- benchmarks.coverage --into: begin -->", "<!-- benchmarks.coverage --into: end -->"


def coverage_tables(measured: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: a row of each design, and a list of everything outside .92 to .98. measured: as in coverage.json."""
    by_design: dict[Design, list[Mapping[str, Any]]] = defaultdict(list)
    for one in measured:
        by_design[Design(*(one[name] for name in vars(Design(1, 1, 1))))].append(one)
    lines = [
        f"| concepts x prompts x images | tables a level | ± | {' | '.join(SCORES)} |",
        "|---" * (len(SCORES) + 3) + "|",
    ]
    outside = []
    for design, ones in by_design.items():
        least = min(one["repetitions"] for one in ones)
        cells = [_range(_held(ones, names)) for names in SCORES.values()]
        lines.append(f"| {_short(design)} | {least} | {_error(least)} | {' | '.join(cells)} |")
        for one in ones:
            parts = [
                f"{name} {_figure(held)}"
                for names in SCORES.values()
                for name, held in _held([one], names).items()
                if _is_out(held)
            ]
            if parts:
                error = f"{one['repetitions']} tables, ± {_error(one['repetitions'])}"
                outside.append(f"- {_short(design)}, rates *{one['rates']}* ({error}): {', '.join(parts)}")
    return "\n".join(
        [*lines, "", f"Outside .92 to .98 ({len(outside)} of {sum(map(len, by_design.values()))}):", "", *outside]
    )


def put_tables(page: Path, tables: str) -> None:
    """Between the marks of a page, in place of what is there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")


def _held(ones: Iterable[Mapping[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """By name and, where there are several, level; what a file has of them."""
    return {
        name if len(list(ones := list(ones))) == 1 else f"{name}, {one['rates']}": one["coverage"][name]
        for one in ones
        for name in names
        if name in one["coverage"]
    }


def _is_out(held: float) -> bool:
    return not LOWEST <= held <= HIGHEST


def _range(held: Mapping[str, float]) -> str:
    return "–".join(
        f"**{_figure(end)}**" if _is_out(end) else _figure(end) for end in (min(held.values()), max(held.values()))
    )


def _figure(held: float) -> str:
    return f"{held:.3f}".removeprefix("0")


def _error(repetitions: int) -> str:
    """One standard error of the share that so many tables give, where it is .95."""
    return _figure(sqrt(0.95 * 0.05 / repetitions))


def _short(design: Design) -> str:
    size = f"{design.concepts} x {design.prompts} x {design.images}"
    return size + ", shared" * design.shared + f", {design.training_seeds} seeds" * (design.training_seeds > 1)
