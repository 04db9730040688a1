"""`efface methods`: the unlearning methods, or every field of one."""

from dataclasses import dataclass
from typing import Annotated

import typer

from efface.launch.command import Command
from efface.launch.terminal.listing import Listing


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """The unlearning methods and their settings."""

    name: Annotated[str | None, typer.Argument(help="One method, with every field of its config.")] = None


def run(options: MethodsOptions) -> Listing:
    """All methods, or the one called `name`. Raises UserError where there is none."""
    from efface.train.method import METHODS
    from efface.train.method_catalogue import catalogue

    return Listing(catalogue()).only(options.name, METHODS)


def show(listing: Listing) -> None:
    listing.show({"method": "name", "": "summary", "strategies": "strategies", "presets": "presets"})


COMMAND = Command("methods", MethodsOptions, run, show, as_json=lambda listing: listing.entries)
