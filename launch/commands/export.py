"""`efface export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from efface.launch.arguments.options import DELTA, LOCAL, BaseOption
from efface.launch.command import Command
from efface.text import shown


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write base and delta together as an ordinary diffusers folder."""

    delta: Annotated[str, typer.Argument(help="A delta: a file, or a hub id.", **DELTA)]
    folder: Annotated[Path, typer.Argument(help="The diffusers folder to write.", **LOCAL)]
    base: BaseOption = "miniature"
    static: Annotated[
        bool, typer.Option("--static", help="Merge adapters that are weighed by the prompt, for every prompt alike.")
    ] = False


def run(options: ExportOptions) -> Path:
    """Write the folder; its path. Raises UserError."""
    from efface.models.base import load_base
    from efface.models.delta import Delta
    from efface.models.export import check_new_folder, export
    from efface.models.files.hub import find_delta

    check_new_folder(options.folder)
    delta = Delta.load(find_delta(options.delta))
    export(load_base(options.base), delta, options.folder, merge_adapters=options.static)
    return options.folder


def show(folder: Path) -> None:
    print(f"{shown(str(folder))}: load it with diffusers.DiffusionPipeline.from_pretrained")


COMMAND = Command("export", ExportOptions, run, show)
