"""`efface status`: how far a run is, who works on it, and on what.

The folder may be somebody else's: what it holds is shown and never obeyed (see `efface.launch.clusters.launch_record`).
"""

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.files import as_path
from efface.launch.arguments.options import RunFolderArgument
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line
from efface.text import count_of

if TYPE_CHECKING:
    from efface.cluster.run_summary import RunSummary


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

    folder: as it was typed; summary: counts and failures; driver: who works on it; running: what its workers do now;
    trains: whether it makes its models, and was not given them.
    """

    folder: str
    summary: "RunSummary"
    driver: str | None
    running: list[str]
    launched: list[LaunchState]
    trains: bool = True

    def as_json(self) -> dict[str, Any]:
        launched = [[launch.job, launch.id, launch.state] for launch in self.launched]
        return {**asdict(self.summary), "driver": self.driver, "running": self.running, "launched": launched}


def run(options: StatusOptions) -> StatusReport:
    """Read the run folder, and ask the launchers about its jobs. Raises UserError where there is no run."""
    from efface.cluster.run import reopen_run
    from efface.cluster.run_summary import summarize
    from efface.cluster.storage.lease import active_driver
    from efface.cluster.stored_plan import is_campaign
    from efface.launch.clusters.cluster_profile import read_profile
    from efface.launch.clusters.launch_record import launch_states
    from efface.launch.terminal.event_text import running_task_lines

    profile = read_profile(options.cluster) if options.cluster else None
    opened = reopen_run(as_path(options.folder))
    driver = active_driver(opened.folder.root)
    return StatusReport(
        folder=options.folder,
        summary=summarize(opened.plan, opened.folder),
        driver=driver,
        running=running_task_lines(opened) if driver else [],
        launched=[LaunchState(*row) for row in launch_states(opened.folder.root, profile)],
        trains=is_campaign(opened.folder),
    )


def show(report: StatusReport) -> None:
    from efface.eval.judging.image_errors import counted

    summary, jobs = report.summary, report.summary.jobs
    failed = f", {jobs.failed} failed" if jobs.failed else ""
    blocked = f", {jobs.blocked} wait for a failed one" if jobs.blocked else ""
    images = "".join(f", images {kind.done}/{kind.all}" for kind in summary.tasks.values() if kind.unit == "image")
    models = f"jobs {jobs.done}/{jobs.all}" if report.trains else f"{count_of(jobs.all, 'delta')} to judge"
    print_line(f"{summary.campaign}: {models}{failed}{blocked}{images}")
    print_line(f"  {report.driver} is at work" if report.driver else "  nobody is at work on it")
    for line in report.running:
        print_line(f"  {line}")
    for launch in report.launched:
        print_line(f"  {launch.job} {launch.id}: {launch.state}")
    for model, broken in summary.broken.items():
        print_line(f"  {model}: {counted(broken)}")
    for failure in summary.failures:
        print_line(f"  failed: {failure.job} ({failure.stage}): {failure.reason}")
    if summary.failures:
        print_line(f"`efface retry {shlex.quote(report.folder)}` tries them again")


COMMAND = Command("status", StatusOptions, run, show, as_json=StatusReport.as_json)
