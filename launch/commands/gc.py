"""`efface gc`: remove what a run folder needs no more."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from efface.files import as_path
from efface.launch.arguments.options import RunFolderArgument
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line

if TYPE_CHECKING:
    from efface.cluster.storage.gc import Garbage


@dataclass(frozen=True, kw_only=True)
class GcOptions:
    """Remove what a run folder needs no more: half-written files, checkpoints and caches of finished jobs."""

    folder: RunFolderArgument
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only name the files that would be removed.")] = False


@dataclass(frozen=True)
class Removed:
    """The files that were removed, or in a dry run would be."""

    files: "list[Garbage]"
    dry_run: bool


def run(options: GcOptions) -> Removed:
    """Remove the files. Raises UserError where somebody works on the run."""
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.gc import collect

    opened = reopen_run(as_path(options.folder))
    return Removed(collect(opened.plan, opened.folder, options.dry_run), options.dry_run)


def show(removed: Removed) -> None:
    if not removed.files:
        print("nothing to remove")
        return
    sizes = Counter[str]()
    for file in removed.files:
        sizes[file.kind] += file.bytes
        if removed.dry_run:
            print_line(f"{file.bytes:>15,} bytes  {file.path}")
    for kind, size in sizes.items():
        print(f"{size:>15,} bytes  {kind}")
    print(f"{sizes.total():>15,} bytes in all {'would be ' if removed.dry_run else ''}removed")


COMMAND = Command("gc", GcOptions, run, show)
