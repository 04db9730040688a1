"""`efface run`: a campaign, or a part of one."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from efface.errors import UserError
from efface.launch.arguments.options import (
    AddressOption,
    CampaignArgument,
    OverridesOption,
    RunFolderOption,
    WorkersOption,
)
from efface.launch.arguments.output_files import optional_path
from efface.launch.command import Command
from efface.launch.execution import execute_run, failure_code, show_results

if TYPE_CHECKING:
    from efface.cluster.run_results import Results


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run a campaign: train, judge and score many jobs at once. Run again, it does only what is missing."""

    campaign: CampaignArgument
    out: RunFolderOption = None
    overrides: OverridesOption = field(default_factory=list)
    workers: WorkersOption = None
    address: AddressOption = None
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Only part K of N, in this process: for arrays of batch jobs.")
    ] = None


@dataclass(frozen=True)
class PartResult:
    """How many jobs of one part have failed."""

    failed: int


def run(options: RunOptions) -> "Results | PartResult":
    """Do what is missing of the campaign, or of one part of it. Raises UserError, Stopped and JobFailure."""
    from efface.cluster.campaign.spec import read_campaign
    from efface.cluster.run import execute_part, open_run
    from efface.launch.terminal.output_streams import results_are_in_files
    from efface.launch.terminal.tables import console, print_warnings

    part = _parse_part(options.part) if options.part is not None else None
    opened = open_run(read_campaign(options.campaign, options.overrides), optional_path(options.out))
    if part is None:
        return execute_run(opened, options.workers, options.address)
    print_warnings(opened.plan.warnings)
    return PartResult(execute_part(opened, *part, console(results_are_in_files())))


def show(result: "Results | PartResult") -> None:
    if not isinstance(result, PartResult):
        show_results(result)


def exit_code(result: "Results | PartResult") -> int:
    """1 where a job failed."""
    return int(result.failed > 0) if isinstance(result, PartResult) else failure_code(result)


COMMAND = Command("run", RunOptions, run, show, exit_code=exit_code)


def _parse_part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found:
        raise UserError(f"--part {text}: should be like 3/16, the third of sixteen parts")
    number, parts = int(found[1]), int(found[2])
    if not 1 <= number <= parts:
        raise UserError(f"--part {text}: should be 1/{parts} to {parts}/{parts}")
    return number, parts
