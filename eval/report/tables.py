"""Every table of a report as rows of plain values: for people the page shows them, for programs they are one CSV.

The CSV is long, one line for each cell, so that tables of all shapes are one file: run, table, row, column, value.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields

from efface.csv_tables import csv_table
from efface.eval.attacking.attack_table import AttackRow, attack_rows
from efface.eval.calibration.judge_accuracy import Accuracy, together
from efface.eval.report.figure import Cell
from efface.eval.report.figures import figures
from efface.eval.report.queries import disagreements
from efface.eval.report.reported_run import RunContent
from efface.eval.scores.leaderboard import LeaderboardRow

HEADER = ("run", "table", "row", "column", "value")


@dataclass(frozen=True)
class NumberTable:
    """A table by its name."""

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def number_tables(run: RunContent) -> Iterator[NumberTable]:
    """The leaderboard, all figures, attacks, the accuracy of each judge, and how far judges differ."""
    yield NumberTable(
        "leaderboard",
        tuple(field.name for field in fields(LeaderboardRow)),
        tuple(astuple(row) for row in run.rows),
    )
    for figure in figures(run):
        yield NumberTable(figure.id, figure.header, figure.rows)
    attacked = attack_rows(run.attacks)
    if attacked:
        yield NumberTable("attacks", tuple(field.name for field in fields(AttackRow)), tuple(map(astuple, attacked)))
    if run.calibrations:
        accuracies = [
            (calibration.judge, concept, accuracy)
            for calibration in run.calibrations
            for concept, accuracy in [
                ("(all together)", together(calibration.accuracy.values())),
                *calibration.accuracy.items(),
            ]
        ]
        yield NumberTable(
            "judges", ("judge", "concept", *ACCURACY), tuple((j, c, *_of(accuracy)) for j, c, accuracy in accuracies)
        )
    differing = disagreements(run.table)
    if differing:
        yield NumberTable("disagreement", tuple(asdict(differing[0])), tuple(map(astuple, differing)))


ACCURACY = (
    *("recall", "recall_low", "recall_high", "own"),
    *("specificity", "specificity_low", "specificity_high", "others", "unreadable"),
)


def _of(accuracy: Accuracy) -> tuple[Cell, ...]:
    """In the order of `ACCURACY`."""
    recall = accuracy.recall_interval or (None, None)
    specificity = accuracy.specificity_interval or (None, None)
    found = (accuracy.recall, *recall, accuracy.own)
    return (*found, accuracy.specificity, *specificity, accuracy.others, accuracy.unreadable)


def tables_csv(runs: Sequence[RunContent]) -> str:
    """One line for each cell, rows counted from 1, numbers in full; an empty value where there is none."""
    cells = (
        (run.name, table.name, number, column, value)
        for run in runs
        for table in number_tables(run)
        for number, row in enumerate(table.rows, start=1)
        for column, value in zip(table.header, row, strict=True)
    )
    return csv_table(HEADER, cells)
