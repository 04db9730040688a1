"""`efface search`."""

import sys

import typer
from rich.console import Console

from efface.launch.output import results_are_in_files

LOG_WIDTH = 120
"""Columns of text where there is no terminal that has a width."""


def search(
    name_or_path: str,
    out: str | None,
    overrides: list[str],
    trials: int | None,
    workers: int | None,
    address: str | None,
) -> None:
    """Run a search and show its Pareto front; exit code 1 where a trial broke."""
    from efface.cluster.search.search import run_search
    from efface.cluster.search.spec import read_search

    console = Console(file=results_are_in_files(), highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    found = run_search(read_search(name_or_path, overrides), out, trials, workers, address, console)
    found.show(console)
    if any(row.result.state == "errored" for row in found.rows):
        console.print("The same command tries the trials again that broke.")
        raise typer.Exit(1)
