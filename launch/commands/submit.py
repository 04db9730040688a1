"""`efface submit NAME`: hand a campaign to a cluster, by the launcher of that name (see `efface.launch.launcher`)."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efface.launch.command import Command
from efface.launch.launcher import Launch, Launcher, Submission, SubmitOptions, get_launcher
from efface.launch.terminal.tables import print_line
from efface.text import shown

if TYPE_CHECKING:
    from efface.launch.clusters.cluster_profile import ClusterProfile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submitted:
    """A campaign's jobs on a cluster; succeeded: False where one was followed to its end and failed."""

    submission: Submission
    out: str
    succeeded: bool


@dataclass(frozen=True)
class DryRun:
    """What would be submitted, as texts by name."""

    texts: dict[str, str]


@dataclass(frozen=True)
class StoppedJobs:
    """Ids of the jobs that were asked to save and end."""

    ids: list[str]


def run(
    launcher: Launcher[Any, Any],
    options: SubmitOptions,
    on_submitted: Callable[[Submission, str], None] = lambda submission, out: None,
) -> Submitted | DryRun | StoppedJobs:
    """Submit a campaign, render what would be submitted, or stop it. Raises UserError, and JobFailure.

    on_submitted: gets the submission and the run folder before a job is followed to its end.
    """
    from efface.launch.clusters.cluster_profile import read_profile
    from efface.launch.clusters.launch_record import check_record_file
    from efface.launch.clusters.launch_spec import read_launch_spec

    profile = read_profile(options.cluster)
    settings = launcher.section(profile)
    spec = read_launch_spec(options.campaign, options.overrides, options.out, launcher.runs_folder(settings))
    launch = Launch(spec, profile, settings, options)
    if options.stop:
        return StoppedJobs(launcher.stop(launch))
    texts = launcher.render(launch)
    if options.dry_run:
        return DryRun(texts)
    if spec.run_folder_is_shared:
        check_record_file(spec.folder)
    launcher.check(launch, texts)
    submission = launcher.submit(launch, texts)
    _log_where_profiles_are_found(profile)
    on_submitted(submission, spec.out)
    succeeded = launcher.follow(launch, submission)
    return Submitted(submission, spec.out, succeeded)


def show(result: Submitted | DryRun | StoppedJobs) -> None:
    if isinstance(result, StoppedJobs):
        for id in result.ids:
            print_line(f"stopped: {id}")
    elif isinstance(result, DryRun):
        _show_texts(result.texts)


def show_submission(submission: Submission, out: str) -> None:
    """The jobs, and where their results will be."""
    print_line(f"run folder: {out}")
    for note in submission.notes:
        print_line(note)
    for job in submission.jobs:
        print_line(f"{'submitted' if submission.new else 'there already'}: {job.launcher} {job.name} {job.id}")


def exit_code(result: Submitted | DryRun | StoppedJobs) -> int:
    """1 where the job was followed and failed."""
    return int(isinstance(result, Submitted) and not result.succeeded)


def command(name: str) -> Command[Any, Any]:
    """`efface submit NAME`. Raises UserError where there is no such launcher, or it cannot be imported."""
    launcher = get_launcher(name)

    def submit(options: SubmitOptions) -> Submitted | DryRun | StoppedJobs:
        return run(launcher, options, show_submission)

    return Command(name, launcher.options, submit, show, exit_code=exit_code)


def _show_texts(texts: dict[str, str]) -> None:
    """One text as it is, several each under its name; on a terminal without characters that act on it."""
    if sys.stdout.isatty():
        texts = {name: "\n".join(map(shown, text.split("\n"))) for name, text in texts.items()}
    if len(texts) == 1:
        print(*texts.values(), end="")
        return
    for name, text in texts.items():
        print(f"==> {shown(name)} <==\n{text}")


def _log_where_profiles_are_found(profile: "ClusterProfile") -> None:
    """`efface status` looks a profile up by its name: where that would find none, or another one, say so."""
    from efface.launch.clusters.cluster_profile import profile_by_name, user_profiles_folder

    known = profile_by_name(profile.name)
    if known is None or known.model_dump() != profile.model_dump():
        path = user_profiles_folder() / f"{profile.name}.yaml"
        logger.info("`efface status` finds this profile by its name at %s; otherwise give it --cluster", path)
