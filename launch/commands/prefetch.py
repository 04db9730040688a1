"""`efface prefetch`: fetch what campaigns and bases need, once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from efface.launch.command import Command
from efface.launch.terminal.tables import print_line

if TYPE_CHECKING:
    from efface.launch.model_downloads import RequiredModel


@dataclass(frozen=True, kw_only=True)
class PrefetchOptions:
    """Fetch the models that campaigns or bases need, once; afterwards HF_HUB_OFFLINE=1 works."""

    names: Annotated[list[str], typer.Argument(help="Campaigns or bases.")]


@dataclass(frozen=True)
class Fetched:
    """A required model; new: it was not on this machine before."""

    model: "RequiredModel"
    new: bool


def run(options: PrefetchOptions) -> list[Fetched]:
    """Bring each required model into the hub's cache. Raises UserError where one cannot be fetched."""
    from efface.launch.model_downloads import fetch, required_models

    return [Fetched(model, fetch(model)) for model in required_models(options.names)]


def show(fetched: list[Fetched]) -> None:
    for each in fetched:
        state = "fetched" if each.new else "is there already"
        print_line(f"{each.model.purpose}: {each.model.source} {state}")


COMMAND = Command("prefetch", PrefetchOptions, run, show)
