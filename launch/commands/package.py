"""`efface package`: what a challenge is handed in, or a paper's reader is given, of a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.errors import UserError
from efface.files import as_path
from efface.launch.arguments.options import LOCAL, LicenceOption, RunFolderArgument
from efface.launch.command import Command
from efface.launch.terminal.progress_bar import progress_bar
from efface.launch.terminal.tables import print_line

if TYPE_CHECKING:
    from efface.cluster.package.description import Description


@dataclass(frozen=True, kw_only=True)
class PackageOptions:
    """Put the models of a run into one folder with scores, logs, environment and hashes, ready to be handed in."""

    run: RunFolderArgument
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", **LOCAL)]
    method: Annotated[
        str | None, typer.Option(help="A method of the run by its name in tables, if it has several.")
    ] = None
    weights: Annotated[
        list[str],
        typer.Option(help="Full diffusers folders to write beside the deltas: fp32, fp16, or none; repeatable."),
    ] = field(default_factory=lambda: ["fp32", "fp16"])
    licence: LicenceOption = ""


@dataclass(frozen=True)
class Packaged:
    """A package that was written."""

    folder: Path
    description: "Description"


def run(options: PackageOptions) -> Packaged:
    """Write it. Raises UserError before anything is written."""
    from efface.cluster.package.build import DTYPES, build_package
    from efface.cluster.run import reopen_run
    from efface.models.export import check_new_folder

    check_new_folder(options.out)
    unknown = [name for name in options.weights if name not in (*DTYPES, "none")]
    if unknown or ("none" in options.weights and len(options.weights) > 1):
        raise UserError(f"--weights {' '.join(options.weights)}: should be {', '.join(DTYPES)}, or none alone")
    opened = reopen_run(as_path(options.run))
    dtypes = [name for name in DTYPES if name in options.weights]
    with progress_bar() as on_progress:
        description = build_package(
            opened.plan,
            opened.folder,
            options.out,
            method=options.method,
            dtypes=dtypes,
            licence=options.licence,
            on_progress=on_progress,
        )
    return Packaged(options.out, description)


def show(packaged: Packaged) -> None:
    count = len(packaged.description.models)
    for problem in packaged.description.problems:
        print_line(f"note: {problem}")
    print_line(f"{packaged.folder}: {count} model{'s' * (count != 1)}; README.md there says the rest")
    print_line(f"`efface verify {packaged.folder}` checks it")


COMMAND = Command("package", PackageOptions, run, show)
