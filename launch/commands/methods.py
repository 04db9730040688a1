"""`efface methods`: the unlearning methods, or every field of one."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from efface.launch.command import Command
from efface.launch.tables import print_line, print_table


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """The unlearning methods and their settings."""

    name: Annotated[str | None, typer.Argument(help="One method, with every field of its config.")] = None


@dataclass(frozen=True)
class MethodListing:
    """Entries of `efface.train.catalogue`; detailed: one method was requested, with its fields."""

    methods: list[dict[str, Any]]
    detailed: bool


def run(options: MethodsOptions) -> MethodListing:
    """All methods, or the one called `name`. Raises UserError where there is none."""
    from efface.train.catalogue import catalogue
    from efface.train.method import get_method

    if options.name is None:
        return MethodListing(catalogue(), False)
    get_method(options.name)
    return MethodListing([method for method in catalogue() if method["name"] == options.name], True)


def show(listing: MethodListing) -> None:
    if not listing.detailed:
        rows = [[m["name"], m["summary"], m["strategies"], m["presets"]] for m in listing.methods]
        print_table(["method", "", "strategies", "presets"], rows)
        return
    (method,) = listing.methods
    print_line(f"{method['name']}  {method['summary']}")
    fields = [[f["name"], str(f.get("default", "-")), f["description"]] for f in method["fields"]]
    print_table(["field", "default", ""], fields)


COMMAND = Command("methods", MethodsOptions, run, show, as_json=lambda listing: listing.methods)
