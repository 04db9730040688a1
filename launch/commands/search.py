"""`efface search`: a search of a method's settings."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from efface.launch.arguments.options import AddressOption, OverridesOption, RunFolderOption, WorkersOption
from efface.launch.command import Command
from efface.launch.terminal.output_streams import results_are_in_files
from efface.launch.terminal.tables import console, print_line

if TYPE_CHECKING:
    from efface.cluster.search.search import SearchResults


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Search a method's settings: many on few images, the best on more. Run again, it goes on where it was."""

    file: Annotated[str, typer.Argument(help="A search YAML, or the name of a shipped one.")]
    out: RunFolderOption = None
    overrides: OverridesOption = field(default_factory=list)
    trials: Annotated[int | None, typer.Option(min=1, help="Settings to try, in all; default: the file's number.")] = (
        None
    )
    workers: WorkersOption = None
    address: AddressOption = None


def run(options: SearchOptions) -> "SearchResults":
    """Execute what is missing of the search, with a line a trial on the terminal. Raises UserError, and Stopped."""
    from efface.cluster.search.search import run_search
    from efface.cluster.search.spec import read_search

    search = read_search(options.file, options.overrides)
    terminal = console(results_are_in_files())
    return run_search(search, options.out, options.trials, options.workers, options.address, terminal)


def show(results: "SearchResults") -> None:
    """The Pareto front, and whether trials failed."""
    results.show(console())
    if exit_code(results):
        print_line("The same command tries the trials again that broke.")


def exit_code(results: "SearchResults") -> int:
    """1 where a trial broke."""
    return int(any(row.result.state == "errored" for row in results.rows))


COMMAND = Command("search", SearchOptions, run, show, exit_code=exit_code)
