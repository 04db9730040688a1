"""`efface logs`: what happened to a job, what its training printed, why it failed; or all that happened in a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from efface.files import as_path, storage_error
from efface.launch.arguments.find_job import find_job
from efface.launch.arguments.options import RunFolderArgument
from efface.launch.command import Command
from efface.launch.terminal.event_text import format_event
from efface.plain_files import leaves, read_plain
from efface.text import shown


@dataclass(frozen=True, kw_only=True)
class LogsOptions:
    """Show what happened to a job, what its training printed, and why it failed; or all that happened in a run."""

    folder: RunFolderArgument
    job: Annotated[
        str | None,
        typer.Argument(
            help="A job by the name of its folder, its id, or the beginning of either; default: all events."
        ),
    ] = None


def run(options: LogsOptions) -> list[str]:
    """The lines, each harmless to a terminal. Raises UserError where the folder holds no run, or no such job."""
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.journal import read_journal

    opened = reopen_run(as_path(options.folder))
    if options.job is None:
        return [format_event(event) for event in read_journal(opened.folder)]
    model = find_job(opened.plan, options.job)
    events = read_journal(opened.folder)
    lines = [format_event(event) for event in events if getattr(event, "model", None) == model.id]
    log, failure = opened.folder.log(model), opened.folder.failure(model)
    if log.is_file() and not leaves(log, opened.folder.root):
        lines += _read(log).rstrip().split("\n")
    if failure:
        lines += f"failed ({failure.stage}): {failure.reason}".split("\n")
        lines += failure.details.rstrip().split("\n")
    return [shown(line) for line in lines]


def _read(log: Path) -> str:
    try:
        return read_plain(log).decode(errors="replace")
    except OSError as error:
        raise storage_error(log, "read", error) from None


def show(lines: list[str]) -> None:
    for line in lines:
        print(line)


COMMAND = Command("logs", LogsOptions, run, show)
