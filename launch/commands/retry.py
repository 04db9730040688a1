"""`efface retry`: clear the failures of a run, or of some of its jobs, and go on with it."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from efface.errors import UserError
from efface.files import as_path
from efface.launch.arguments.find_job import find_job
from efface.launch.arguments.options import AddressOption, RunFolderArgument, WorkersOption
from efface.launch.command import Command
from efface.launch.execution import execute_run, failure_code, show_results

if TYPE_CHECKING:
    from efface.cluster.run_results import Results


@dataclass(frozen=True, kw_only=True)
class RetryOptions:
    """Try again the jobs of a run that failed."""

    folder: RunFolderArgument
    jobs: Annotated[list[str], typer.Argument(help="Jobs by name or id; default: all that failed.")] = field(
        default_factory=list
    )
    failed: Annotated[bool, typer.Option("--failed", help="All that failed, as when no job is named.")] = False
    workers: WorkersOption = None
    address: AddressOption = None


def run(options: RetryOptions) -> "Results":
    """Do again what failed, and what is missing. Raises UserError where nothing has failed."""
    from efface.cluster.evaluate_in_looks import resume
    from efface.cluster.run import reopen_run

    opened = reopen_run(as_path(options.folder))
    failed = opened.remaining_tasks.failed
    requested = [] if options.failed else [find_job(opened.plan, job) for job in options.jobs]
    not_failed = next((model for model in requested if model not in failed), None)
    if not_failed:
        raise UserError(f"{options.folder}: job {not_failed.folder} has not failed")
    if not failed:
        raise UserError(f"{options.folder}: no job of this run has failed")
    for model in requested or failed:
        opened.folder.clear_failure(model)
    return resume(opened, partial(execute_run, workers=options.workers, address=options.address))


COMMAND = Command("retry", RetryOptions, run, show_results, exit_code=failure_code)
