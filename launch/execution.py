"""Run what is missing of a run, and show what it came to: what `run`, `retry` and `evaluate` share."""

import logging
import shlex
from typing import TYPE_CHECKING

from rich.text import Text

from efface.errors import UserError
from efface.launch.terminal.output_streams import results_are_in_files
from efface.launch.terminal.tables import console, print_line, print_warnings
from efface.text import shown

if TYPE_CHECKING:
    from efface.cluster.run import Run
    from efface.cluster.run_results import Results

logger = logging.getLogger(__name__)


def execute_run(run: "Run", workers: int | None, address: str | None) -> "Results":
    """Do what is missing, with progress on the terminal, and score. Raises UserError, Stopped and JobFailure."""
    from efface.cluster.run import execute
    from efface.cluster.run_report import update_report

    print_warnings(run.plan.warnings)
    results = execute(run, workers, address, console(results_are_in_files()))
    try:
        update_report(run.folder)
    except UserError as error:  # the results are there; only the page about them is not
        logger.warning("no report: %s", error)
    return results


def show_results(results: "Results") -> None:
    """The leaderboard, and what failed."""
    terminal = console()
    results.show(terminal)
    for failure in results.failures:
        terminal.print(Text.assemble(("failed", "red"), f": {shown(failure)}"), soft_wrap=True)
    if results.failures:
        print_line(f"`efface retry {shlex.quote(str(results.folder.root))}` tries them again")


def failure_code(results: "Results") -> int:
    """1 where a job failed."""
    return 1 if results.failures else 0
