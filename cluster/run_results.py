"""What a run came to, and how it is shown on a terminal."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from efface.cluster.storage.run_folder import RunFolder
from efface.concepts.prompts import AXES
from efface.eval.attacking.attack_control import ControlComparison
from efface.eval.attacking.attack_table import AttackRow, attack_table
from efface.eval.calibration.judge_accuracy import Accuracy
from efface.eval.judging.image_errors import ImageError, counted
from efface.eval.scores.continual import Stages
from efface.eval.scores.continual import rich_table as stages_table
from efface.eval.scores.leaderboard import LeaderboardRow, differences_table, rich_table
from efface.notebook_tables import html_image, html_table
from efface.plain_files import leaves, read_plain
from efface.text import rich_text, shown

MIN_TRUSTED_ACCURACY = 0.9
"""Accuracy on the base's images below which a judge's verdicts come with a warning."""


MAX_SHEETS = 3
"""Concepts whose images a notebook shows."""


@dataclass(frozen=True)
class Results:
    """What a run came to."""

    folder: RunFolder
    rows: list[LeaderboardRow]
    stages: dict[str, Stages]
    """Of each chain of requests, by its method's label."""
    accuracy: dict[str, float | None]
    """Of each judge on images of the unedited base."""
    failures: list[str]
    unscored: list[str]
    """Why a method of the plan has no row."""
    broken: dict[str, dict[ImageError, int]] = field(default_factory=dict)
    """Images of each method that are no evidence, by their error; those without any are left out."""
    measured: dict[str, Accuracy] = field(default_factory=dict)
    """What `accuracy` of each judge was measured on, all concepts together."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the rows has to know."""
    warnings: list[str] = field(default_factory=list)
    """What the run found out that should be known before the scores are believed."""
    attacks: list[AttackRow] = field(default_factory=list)
    """A row for each method and attack."""
    controls: list[ControlComparison] = field(default_factory=list)
    """What the control says of each attack that has one."""

    def __repr__(self) -> str:
        """Short, since tables and images are for `show` and notebooks."""
        found = ", ".join(f"{row.method}: {row.err_mean:.3f}" for row in self.rows)
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"<Results of {self.folder.root}: ERR of {found or 'nothing'}{failed}>"

    def _repr_html_(self) -> str:
        """As a notebook shows it: the leaderboard, and images of the base and every method side by side."""
        header = ("method", "concepts", *AXES, "ERR", "95 % interval")
        lines = [
            (
                row.method,
                row.concepts,
                *(f"{getattr(row, axis):.3f}" for axis in AXES),
                f"{row.err_mean:.3f}",
                f"{row.low:.3f}–{row.high:.3f}",
            )
            for row in self.rows
        ]
        found = sorted(self.folder.sheets.glob("*.png")) if self.folder.sheets.is_dir() else []
        sheets = [path for path in found if path.is_file() and not leaves(path, self.folder.root)][:MAX_SHEETS]
        return html_table(header, lines) + "".join(html_image(read_plain(sheet), sheet.stem) for sheet in sheets)

    def show(self, console: Console) -> None:
        """The leaderboard, and where the rest is."""
        if self.rows:
            console.print(rich_table(self.rows, console.width))
        differences = differences_table(self.rows)
        if differences:
            console.print(differences)
        for note in self.notes:
            console.print(rich_text(note), soft_wrap=True)
        for label, chain in self.stages.items():
            console.print(stages_table(chain, f"{label}, request by request"))
        for judge, accuracy in self.accuracy.items():
            said = "unknown" if accuracy is None else f"{accuracy:.1%}"
            line = f"judge {judge}: {said} right on images of the unedited base{_measured_on(self.measured.get(judge))}"
            console.print(rich_text(line), soft_wrap=True)
            if accuracy is not None and accuracy < MIN_TRUSTED_ACCURACY:
                console.print("[yellow]read its scores with care: it is wrong too often[/yellow]")
        for label, broken in self.broken.items():
            console.print(Text.assemble((shown(label), "yellow"), f": {counted(broken)}"), soft_wrap=True)
        if self.attacks:
            console.print(attack_table(self.attacks))
            for row in self.attacks:
                if row.remark:
                    console.print(
                        Text.assemble((shown(f"{row.attack} on {row.method}"), "yellow"), f": {shown(row.remark)}")
                    )
        for comparison in self.controls:
            console.print(rich_text(comparison.line), soft_wrap=True)
        for warning in self.warnings:
            console.print(Text.assemble(("warning", "yellow"), f": {shown(warning)}"), soft_wrap=True)
        for reason in self.unscored:
            console.print(Text.assemble(("not scored", "yellow"), f": {shown(reason)}"), soft_wrap=True)
        for path in (
            self.folder.report,
            self.folder.table,
            self.folder.scores,
            self.folder.leaderboard,
            self.folder.sheets,
        ):
            if path.exists():
                console.print(rich_text(str(path)), soft_wrap=True)


def _measured_on(accuracy: Accuracy | None) -> str:
    """`; finds 98.0% of 50 concepts that are there (90-100%), and leaves out 99.0% of 480 that are not (98-100%)`."""
    if accuracy is None or accuracy.recall_interval is None or accuracy.specificity_interval is None:
        return ""
    (low, high), (least, most) = accuracy.recall_interval, accuracy.specificity_interval
    return (
        f"; finds {accuracy.recall:.1%} of {accuracy.own} concepts that are there ({low:.0%}-{high:.0%}), and leaves "
        f"out {accuracy.specificity:.1%} of {accuracy.others} that are not ({least:.0%}-{most:.0%})"
    )
