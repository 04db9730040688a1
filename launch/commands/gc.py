"""`efface gc`: remove what a run folder needs no more."""

from dataclasses import dataclass
from typing import Annotated

import typer

from efface.files import as_path
from efface.launch.command import Command
from efface.launch.options import RunFolderArgument


@dataclass(frozen=True, kw_only=True)
class GcOptions:
    """Remove what a run folder needs no more: half-written files, checkpoints and caches of finished jobs."""

    folder: RunFolderArgument
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False


@dataclass(frozen=True)
class Removed:
    """Bytes of each kind of file that were removed, or in a dry run would be."""

    bytes: dict[str, int]
    dry_run: bool


def run(options: GcOptions) -> Removed:
    """Remove the files. Raises UserError where somebody works on the run."""
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.gc import collect

    return Removed(collect(reopen_run(as_path(options.folder)), options.dry_run), options.dry_run)


def show(removed: Removed) -> None:
    if not removed.bytes:
        print("nothing to remove")
        return
    for what, size in removed.bytes.items():
        print(f"{size:>15,} bytes  {what}")
    print(f"{sum(removed.bytes.values()):>15,} bytes in all {'would be ' if removed.dry_run else ''}removed")


COMMAND = Command("gc", GcOptions, run, show)
