"""`efface status`: how far a run is, who works on it, and on what.

The folder may be somebody else's: what it holds is shown and never obeyed (see `efface.launch.launch_record`).
"""

import shlex
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from efface.files import as_path
from efface.launch.command import Command
from efface.launch.options import RunFolderArgument
from efface.launch.tables import print_line


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Show how far a run is, while it runs or after."""

    folder: RunFolderArgument
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", "-c", help="Your profile of the cluster, where it is not one known by name."),
    ] = None


@dataclass(frozen=True)
class LaunchState:
    """A job of a launcher: what it is, its id there, and how it is (see `efface.launch.launcher.State`)."""

    job: str
    id: str
    state: str


@dataclass(frozen=True)
class StatusReport:
    """How far a run is.

    folder: as it was typed; summary: counts and failures, see `efface.cluster.run.summary`; driver: who works on it;
    running: what its workers do now.
    """

    folder: str
    summary: dict[str, Any]
    driver: str | None
    running: list[str]
    launched: list[LaunchState]

    def as_json(self) -> dict[str, Any]:
        launched = [[launch.job, launch.id, launch.state] for launch in self.launched]
        return {**self.summary, "driver": self.driver, "running": self.running, "launched": launched}


def run(options: StatusOptions) -> StatusReport:
    """Read the run folder, and ask the launchers about its jobs. Raises UserError where there is no run."""
    from efface.cluster.run import reopen_run, summary
    from efface.cluster.storage.lease import active_driver
    from efface.launch.cluster_profile import read_profile
    from efface.launch.event_text import running_tasks
    from efface.launch.launch_record import launch_states

    profile = read_profile(options.cluster) if options.cluster else None
    opened = reopen_run(as_path(options.folder))
    driver = active_driver(opened.folder.root)
    return StatusReport(
        folder=options.folder,
        summary=summary(opened),
        driver=driver,
        running=running_tasks(opened) if driver else [],
        launched=[LaunchState(*row) for row in launch_states(opened.folder.root, profile)],
    )


def show(report: StatusReport) -> None:
    jobs, images = report.summary["jobs"], report.summary["images"]
    failed = f", {jobs['failed']} failed" if jobs["failed"] else ""
    blocked = f", {jobs['blocked']} wait for a failed one" if jobs["blocked"] else ""
    done = f"jobs {jobs['done']}/{jobs['all']}{failed}{blocked}, images {images['done']}/{images['all']}"
    print_line(f"{report.summary['campaign']}: {done}")
    print_line(f"  {report.driver} is at work" if report.driver else "  nobody is at work on it")
    for line in report.running:
        print_line(f"  {line}")
    for launch in report.launched:
        print_line(f"  {launch.job} {launch.id}: {launch.state}")
    failures = report.summary["failures"]
    for failure in failures:
        print_line(f"  failed: {failure['job']} ({failure.get('stage')}): {failure.get('reason')}")
    if failures:
        print_line(f"`efface retry {shlex.quote(report.folder)}` tries them again")


COMMAND = Command("status", StatusOptions, run, show, as_json=StatusReport.as_json)
