"""`efface cancel`: stop whoever works on a run, or give up one of its jobs."""

import shlex
from dataclasses import dataclass
from typing import Annotated

import typer

from efface.errors import UserError
from efface.files import as_path
from efface.launch.arguments.find_job import find_job
from efface.launch.arguments.options import RunFolderArgument
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line


@dataclass(frozen=True, kw_only=True)
class CancelOptions:
    """Stop a run, wherever it runs: jobs save what they have, and the same command goes on from there."""

    folder: RunFolderArgument
    job: Annotated[str | None, typer.Argument(help="Give up only this job; default: the whole run is stopped.")] = None


@dataclass(frozen=True)
class CancelledRun:
    """A stop request; driver: who works on the run and sees it, None where nobody does."""

    driver: str | None


@dataclass(frozen=True)
class CancelledJob:
    """A job that was given up: its folder's name, its id, and the run folder as it was typed."""

    folder: str
    id: str
    run_folder: str


def run(options: CancelOptions) -> CancelledRun | CancelledJob:
    """Write the stop request, or the job's failure, into the run folder. Raises UserError."""
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.lease import active_driver

    opened = reopen_run(as_path(options.folder))
    if options.job is None:
        opened.folder.request_stop()
        return CancelledRun(active_driver(opened.folder.root))
    model = find_job(opened.plan, options.job)
    tasks = [task for task in opened.plan.tasks if task.model == model]
    if len(opened.folder.records(tasks)) == len(tasks):
        raise UserError(f"{options.folder}: job {model.folder} is finished already")
    opened.folder.fail(model, "training", "cancelled")
    return CancelledJob(model.folder, model.id, options.folder)


def show(result: CancelledRun | CancelledJob) -> None:
    if isinstance(result, CancelledJob):
        command = f"efface retry {shlex.quote(result.run_folder)} {result.id}"
        print_line(f"{result.folder} is given up; `{command}` takes it up again")
    elif result.driver:
        print_line(f"{result.driver} has been asked to stop")
    else:
        print_line("nobody is at work on it; parts of it stop if any run")


COMMAND = Command("cancel", CancelOptions, run, show)
