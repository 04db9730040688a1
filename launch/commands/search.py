"""`efface search`: a search of a method's settings."""

from dataclasses import dataclass, field
from typing import Annotated

import typer

from efface.launch.command import Command
from efface.launch.options import AddressOption, OverridesOption, RunFolderOption, WorkersOption


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


def run(options: SearchOptions) -> None:
    """Execute the search and show its Pareto front. Raises UserError; exit code 1 where a trial failed."""
    from efface.launch.search import search

    search(
        name_or_path=options.file,
        out=options.out,
        overrides=options.overrides,
        trials=options.trials,
        workers=options.workers,
        address=options.address,
    )


def show(_: None) -> None:
    """The search shows its front itself, trial by trial."""


COMMAND = Command("search", SearchOptions, run, show)
