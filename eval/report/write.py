"""The files of a report: HTML for people, its numbers as CSV for programs, its leaderboard as Markdown for papers."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from efface.concepts.prompts import AXES, KEPT_AXES
from efface.csv_tables import csv_table
from efface.errors import UserError
from efface.eval.report.page import report_html
from efface.eval.report.reported_run import RunContent
from efface.eval.report.strips import image_file
from efface.eval.report.tables import HEADER as TABLES_HEADER
from efface.eval.report.tables import tables_csv
from efface.eval.scores.leaderboard import LeaderboardRow, shows_some
from efface.files import write_atomic
from efface.text import shown

SIGN = '<!doctype html>\n<html lang="en">\n<head>\n<meta name="generator" content="efface'
"""How a report begins; a file that begins otherwise is never replaced."""

HEADER = ("run", "method", "concept", "axis", "score", "low", "high")
MARKDOWN = re.compile(r"## .*\n\n(- .*\n)*\n?\| method \| concepts \| ")
"""A run's name, what is amiss with it, and the leaderboard."""


def write_report(runs: Sequence[RunContent], out: Path, version: str = "", *, with_images: bool = False) -> list[Path]:
    """Write `out` (HTML) and, with other suffixes, the scores as CSV and Markdown, and all tables as another CSV,
    `<stem>-tables.csv`; the paths. version: see `is_report_of`.

    with_images: every image is written too, into the folder `<stem>-images` beside, and linked from its thumbnail.
    Raises UserError, before anything is written, where one of these files is there and is none of a report.
    """
    tables = out.with_name(f"{out.stem}-tables.csv")
    for path in (out, out.with_suffix(".csv"), out.with_suffix(".md"), tables):
        if path.exists() and not _is_replaceable(path):
            raise UserError(f"{path}: is there and is no report; give --out another file")
    folder = out.with_name(f"{out.stem}-images") if with_images else None
    if folder and folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is there and is no folder for images; give --out another file")
    html = report_html(
        runs,
        ", ".join(run.name for run in runs),
        version,
        images=quote(folder.name) if folder else None,
        tables=tables.name,
    )
    files = {
        out: html,
        out.with_suffix(".csv"): scores_csv(runs),
        out.with_suffix(".md"): scores_markdown(runs),
        tables: tables_csv(runs),
    }
    for path, text in files.items():
        write_atomic(path, text.encode())
    if folder:
        _write_images(runs, folder)
    return [*files, *([folder] if folder else [])]


def _write_images(runs: Sequence[RunContent], folder: Path) -> None:
    """Every image once, as PNG."""
    folder.mkdir(exist_ok=True)
    for sha, png in (image for run in runs for image in run.images()):
        write_atomic(folder / image_file(sha), png)


def is_report_of(path: Path, version: str) -> bool:
    """Whether a file is a report that was written with this `version`."""
    return _head(path).startswith(f'{SIGN} {version}">')


def _is_replaceable(path: Path) -> bool:
    """Whether a file begins as this module writes those of its suffix."""
    if path.suffix == ".md":
        return path.is_file() and MARKDOWN.match(path.read_text(encoding="utf-8", errors="replace")) is not None
    return _head(path).startswith((",".join(HEADER), ",".join(TABLES_HEADER)) if path.suffix == ".csv" else SIGN)


def _head(path: Path) -> str:
    """The beginning of a file; nothing where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(len(SIGN) + 80).decode(errors="replace")


def scores_csv(runs: Sequence[RunContent]) -> str:
    """One line for each run, method, concept and axis, in full, with its 95 % interval where there is one.

    `adjacent_shown` and `retain_shown` are of concepts that methods may see.
    """
    return csv_table(HEADER, (line for run in runs for line in _lines(run)))


def _lines(run: RunContent) -> Iterator[tuple[str | float, ...]]:
    for method, scores in run.scores.items():
        intervals = scores.intervals
        for concept, values in scores.concepts.items():
            for axis in (*AXES, "err"):
                yield run.name, method, concept, axis, values[axis], *intervals.concepts[concept][axis]
        for axis in AXES:
            yield run.name, method, "(mean)", axis, scores.axes[axis], *intervals.axes[axis]
        for concept, seen in {**scores.shown.concepts, "(mean)": scores.shown.axes}.items():
            for axis, value in seen.items():
                if value is not None:
                    yield run.name, method, concept, f"{axis}_shown", value, "", ""
        yield run.name, method, "(mean)", "err_mean", scores.err_mean, *intervals.err_mean
        yield run.name, method, "(mean)", "err_of_means", scores.err_of_means, *intervals.err_of_means


def scores_markdown(runs: Sequence[RunContent]) -> str:
    """The leaderboards as Markdown tables."""
    blocks = []
    for run in runs:
        of_shown = [f"{axis}_shown" for axis in KEPT_AXES] if shows_some(run.rows) else []
        header = (
            "method",
            "concepts",
            *AXES,
            *of_shown,
            "ERR mean",
            "95 % interval",
            "difference",
            "ERR of means",
            "relative L2",
            "seconds",
        )
        lines = [f"## {markdown_text(run.name)}", "", *(f"- {markdown_text(problem)}" for problem in run.problems)]
        lines += [""] if run.problems else []
        lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for row in run.rows:
            cells = (
                markdown_text(row.method),
                str(row.concepts),
                *(f"{getattr(row, axis):.3f}" for axis in AXES),
                *("" if (value := getattr(row, name)) is None else f"{value:.3f}" for name in of_shown),
                f"{row.err_mean:.3f}",
                f"{row.low:.3f}–{row.high:.3f}",
                _difference(row),
                f"{row.err_of_means:.3f}",
                "" if row.relative_l2 is None else f"{row.relative_l2:.1e}",
                "" if row.seconds is None else f"{row.seconds:.0f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines += [line for note in run.notes for line in ("", markdown_text(note))]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _difference(row: LeaderboardRow) -> str:
    """Of ERR, to the method that is compared to."""
    if row.difference is None:
        return ""
    interval = f"{row.difference_low:.3f} to {row.difference_high:.3f}"
    return f"{row.difference:.3f} to {markdown_text(row.compared_to)} ({interval}){' =' * row.ties}"


def markdown_text(text: str) -> str:
    """A text that ends no cell and starts no markup."""
    escaped = shown(text)
    for character in "\\|`*_<>[]#":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped
