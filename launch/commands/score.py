"""`efface score`: every score, from the image table alone."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import UserError
from efface.launch.command import Command

if TYPE_CHECKING:
    import pyarrow as pa

    from efface.eval.scores.corrected import CorrectedScores
    from efface.eval.scores.results import Difference, Scores


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Recompute every score from an image table alone."""

    table: Annotated[str, typer.Argument(help="An image table, or a folder of them: a path or a URL.")]
    method: Annotated[str | None, typer.Option(help="Show only this method of the table.")] = None
    against: Annotated[
        str | None, typer.Option(help="Show differences to this method, on the same images; default: to the best.")
    ] = None
    judge: Annotated[str | None, typer.Option(help="Take this judge's verdicts.")] = None
    recipe: Annotated[str | None, typer.Option(help="Take images of this recipe, by its id in the table.")] = None
    base: Annotated[str | None, typer.Option(help="Take models of this base, by its id in the table.")] = None
    calibration: Annotated[
        str | None,
        typer.Option(help="A judge's calibration.json: shows scores corrected for its errors, too (Rogan-Gladen)."),
    ] = None
    curve: Annotated[
        bool, typer.Option("--curve", help="Show how often concepts are present at other thresholds of the judge.")
    ] = False


@dataclass(frozen=True)
class TableScores:
    """The scores of each method of a table, and their differences to one of them, by label."""

    methods: dict[str, "Scores"]
    differences: dict[str, "Difference"] = field(default_factory=dict)
    requested: str | None = None
    corrected: "dict[str, CorrectedScores]" = field(default_factory=dict)
    """By label, corrected for the judge's errors, where its calibration was given."""
    curves: dict[str, dict[str, dict[float, float]]] = field(default_factory=dict)
    """By label, see `threshold_curve`, where that was asked for."""

    def __repr__(self) -> str:
        """Short, without the concepts."""
        return f"<TableScores: ERR of {', '.join(f'{label}: {of.err_mean:.3f}' for label, of in self.methods.items())}>"

    def _repr_html_(self) -> str:
        """As a notebook shows it: a line for each method and concept."""
        from efface.concepts.prompts import AXES
        from efface.notebook_tables import html_table

        lines = [
            (label, concept, *(f"{values[axis]:.3f}" for axis in (*AXES, "err")), "{:.3f}–{:.3f}".format(*interval))
            for label, scores in self.methods.items()
            for concept, values in scores.concepts.items()
            for interval in [scores.intervals.concepts[concept]["err"]]
        ]
        return html_table(("method", "concept", *AXES, "ERR", "95 % interval"), lines)


def run(options: ScoreOptions) -> TableScores:
    """Score each method of the table, or the one requested; a run folder means its table. Raises UserError."""
    from efface.eval.judging.image_table import read_table
    from efface.eval.scores.comparison import differences
    from efface.eval.scores.scoring import BASE, score_table
    from efface.eval.scores.threshold_curve import threshold_curve
    from efface.files import as_path

    rows = read_table(_table(as_path(options.table)))
    every = labels = sorted(set(rows["method"].unique().to_pylist()) - {BASE}) or [BASE]
    if options.method:
        labels = list(dict.fromkeys(label for label in (options.method, options.against) if label))

    def score(label: str) -> "Scores":
        return score_table(rows, method=label, judge=options.judge, recipe=options.recipe, base=options.base)

    scores = {label: score(label) for label in labels}
    compared = dict(scores)
    if options.method and not options.against:
        for label in every:
            with suppress(UserError):  # one that cannot be scored is not the best
                compared[label] = compared.get(label) or score(label)
    corrected = {label: _corrected(options, rows, label) for label in labels} if options.calibration else {}
    curves = {label: threshold_curve(_chosen(options, rows, label)) for label in labels} if options.curve else {}
    to_others = differences(compared, options.against)
    found = {label: to_others[label] for label in labels if label in to_others}
    return TableScores(scores, found, options.method, corrected, curves)


def _table(path: Path) -> Path:
    """The image table of a run folder, or what else was named. Raises UserError for a run that has none yet."""
    from efface.cluster.storage.opening import check_format
    from efface.cluster.storage.run_folder import RunFolder
    from efface.cluster.unfinished_run import not_finished

    folder = RunFolder(path)
    if folder.table.is_file():
        return folder.table
    if path.is_dir() and check_format(folder):
        raise not_finished(folder)
    return path


def _chosen(options: ScoreOptions, rows: "pa.Table", label: str) -> "pa.Table":
    """The rows of one method that the options name."""
    import pyarrow.compute as pc

    wanted = {"method": label, "judge": options.judge, "recipe_id": options.recipe, "base_id": options.base}
    for column, value in wanted.items():
        rows = rows if value is None else rows.filter(pc.equal(rows[column], value))
    return rows


def _corrected(options: ScoreOptions, rows: "pa.Table", label: str) -> "CorrectedScores":
    """Of one method, by the judge of the calibration. Raises UserError where it is of another one."""
    from efface.eval.calibration.calibration import read_calibration
    from efface.eval.scores.corrected import corrected_scores
    from efface.eval.scores.held_out import split_shown

    calibration = read_calibration(str(options.calibration))
    rows = _chosen(options, rows, label)
    versions = set(rows["judge_version"].unique().to_pylist())
    if versions != {calibration.judge_version}:
        raise UserError(
            f"{options.calibration}: is of judge '{calibration.judge}', version {calibration.judge_version}, should be "
            f"of the one whose verdicts are scored ({', '.join(sorted(versions))})"
        )
    unknown = sorted(set(rows["asked_concept"].unique().to_pylist()) - calibration.accuracy.keys())
    if unknown:
        raise UserError(f"{options.calibration}: the judge was not measured on {', '.join(unknown)}, should be on all")
    return corrected_scores(split_shown(rows)[0], calibration.accuracy)


def show(scores: TableScores) -> None:
    from efface.concepts.prompts import AXES
    from efface.eval.scores.corrected import CORRECTED, axes_of
    from efface.eval.scores.leaderboard import differences_table, leaderboard, notes, rich_table
    from efface.launch.terminal.tables import console, print_line, print_table

    terminal = console()
    rows = leaderboard(scores.methods, compared=scores.differences)
    terminal.print(rich_table(rows, terminal.width))
    differences = differences_table(rows)
    if differences:
        terminal.print(differences)
    for note in notes(scores.methods, rows):
        print_line(note)
    if scores.corrected:
        print_line(f"{CORRECTED}:")
        print_table(("method", *AXES), [[label, *axes_of(found)] for label, found in scores.corrected.items()])
    for label, curve in scores.curves.items():
        print_line(f"{label}: share of images in which the concept is present, by the judge's threshold")
        thresholds = list(next(iter(curve.values()), {}))
        header = ("axis, concept", *(f"{threshold:.2f}" for threshold in thresholds))
        print_table(header, [[asked, *(f"{share:.2f}" for share in of.values())] for asked, of in curve.items()])


def as_json(scores: TableScores) -> dict[str, Any]:
    """The scores of the one method. Raises UserError where the table has several and none was requested."""
    if len(scores.methods) > 1 and not scores.requested:
        labels = ", ".join(scores.methods)
        raise UserError(f"the image table holds several methods ({labels}), give one as --method")
    label = scores.requested or next(iter(scores.methods))
    found = scores.methods[label].as_json()
    if label in scores.differences:
        found["difference"] = scores.differences[label].as_json()
    if label in scores.corrected:
        found["corrected"] = scores.corrected[label].as_json()
    if label in scores.curves:
        found["curve"] = scores.curves[label]
    return found


COMMAND = Command("score", ScoreOptions, run, show, as_json=as_json)
