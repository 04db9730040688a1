"""`efface doctor`: looks at this machine, and at a campaign's needs, before hours are spent. It changes nothing."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from efface.launch.command import Command
from efface.launch.doctor.check import CheckResult
from efface.launch.terminal.tables import console
from efface.text import shown

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Look at this machine: versions, GPUs, memory, disk, hub, Ray. Exit code 1 where something must be corrected."""

    campaign: Annotated[str | None, typer.Argument(help="A campaign this machine should be fit for.")] = None


def run(options: DoctorOptions) -> list[CheckResult]:
    """Every finding, in the order of the checks."""
    from efface.launch.doctor.examination import run_checks

    return list(run_checks(options.campaign))


def show(results: list[CheckResult]) -> None:
    from rich.text import Text

    terminal = console()
    for result in results:
        mark = (f"{result.status:8}", COLOURS[result.status])
        line = Text.assemble(mark, (f"{result.name}: ", "bold"), shown(result.message))
        terminal.print(line, soft_wrap=True)
        if result.remedy:
            terminal.print(Text(f"{'':8}-> {shown(result.remedy)}"), soft_wrap=True)


def as_json(results: list[CheckResult]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]


def exit_code(results: list[CheckResult]) -> int:
    """1 where a finding is a problem."""
    return int(any(result.status == "problem" for result in results))


COMMAND = Command("doctor", DoctorOptions, run, show, as_json=as_json, exit_code=exit_code)
