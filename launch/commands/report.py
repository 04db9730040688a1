"""`efface report`: a run as one HTML file, with its numbers as CSV and Markdown beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from efface.errors import UserError
from efface.files import as_path
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write a report on runs, finished or not: one HTML file that needs nothing else, with CSV and Markdown beside."""

    runs: Annotated[list[str], typer.Argument(help="Run folders.", metavar="RUN…")]
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="The HTML file; default: report.html in the first run folder.", metavar="FILE"
        ),
    ] = None
    images: Annotated[
        bool, typer.Option("--images", help="Also write every image into a folder beside, and link it.")
    ] = False


@dataclass(frozen=True)
class Report:
    """What was written."""

    files: list[Path]
    problems: list[str]
    """What the report says first: what is missing, failed or damaged."""

    def as_json(self) -> dict[str, list[str]]:
        return {"files": [str(path) for path in self.files], "problems": self.problems}


def run(options: ReportOptions) -> Report:
    """Raises UserError where a folder is no run, or the file is one that efface did not write."""
    from efface.cluster.run_content import read_run
    from efface.eval.report.write import write_report

    out = as_path(options.out) if options.out else as_path(options.runs[0]) / "report.html"
    if out.suffix != ".html":
        raise UserError(f"--out {options.out}: should end in .html")
    runs = [read_run(as_path(folder)) for folder in options.runs]
    files = write_report(runs, out, with_images=options.images)
    return Report(files, [problem for one in runs for problem in one.problems])


def show(report: Report) -> None:
    for problem in report.problems:
        print_line(f"note: {problem}")
    for path in report.files:
        print_line(str(path))


COMMAND = Command("report", ReportOptions, run, show, as_json=Report.as_json)
