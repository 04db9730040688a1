"""`efface score`: every score, from the image table alone."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import UserError
from efface.launch.command import Command

if TYPE_CHECKING:
    from efface.eval.scores.results import Difference, Scores


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Recompute every score from an image table alone."""

    table: Annotated[str, typer.Argument(help="An image table, or a folder of them: a path or a URL.")]
    method: Annotated[str | None, typer.Option(help="Score only this method of the table.")] = None
    against: Annotated[
        str | None, typer.Option(help="Show differences to this method, on the same images; default: to the best.")
    ] = None
    judge: Annotated[str | None, typer.Option(help="Take this judge's verdicts.")] = None
    recipe: Annotated[str | None, typer.Option(help="Take images of this recipe, by its id in the table.")] = None
    base: Annotated[str | None, typer.Option(help="Take models of this base, by its id in the table.")] = None


@dataclass(frozen=True)
class TableScores:
    """The scores of each method of a table, and their differences to one of them, by label."""

    methods: dict[str, "Scores"]
    differences: dict[str, "Difference"] = field(default_factory=dict)
    requested: str | None = None


def run(options: ScoreOptions) -> TableScores:
    """Score each method of the table, or the one requested; a run folder means its table. Raises UserError."""
    from efface.eval.image_table import read_table
    from efface.eval.scores.comparison import differences
    from efface.eval.scores.scoring import BASE, score_table
    from efface.files import as_path

    path = as_path(options.table)
    rows = read_table(path / "table.parquet" if (path / "table.parquet").is_file() else path)
    labels = sorted(set(rows["method"].unique().to_pylist()) - {BASE}) or [BASE]
    if options.method:
        labels = list(dict.fromkeys(label for label in (options.method, options.against) if label))
    scores = {
        label: score_table(rows, method=label, judge=options.judge, recipe=options.recipe, base=options.base)
        for label in labels
    }
    return TableScores(scores, differences(scores, options.against), options.method)


def show(scores: TableScores) -> None:
    from efface.eval.scores.leaderboard import differences_table, leaderboard, notes, rich_table
    from efface.launch.tables import console, print_line

    terminal = console()
    rows = leaderboard(scores.methods, compared=scores.differences)
    terminal.print(rich_table(rows, terminal.width))
    differences = differences_table(rows)
    if differences:
        terminal.print(differences)
    for note in notes(scores.methods, rows):
        print_line(note)


def as_json(scores: TableScores) -> dict[str, Any]:
    """The scores of the one method. Raises UserError where the table has several and none was requested."""
    if len(scores.methods) > 1 and not scores.requested:
        labels = ", ".join(scores.methods)
        raise UserError(f"the image table holds several methods ({labels}), give one as --method")
    label = scores.requested or next(iter(scores.methods))
    compared = scores.differences.get(label)
    return {**scores.methods[label].as_json(), **({"difference": compared.as_json()} if compared else {})}


COMMAND = Command("score", ScoreOptions, run, show, as_json=as_json)
