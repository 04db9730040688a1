"""`efface submit slurm`: readable scripts from the templates beside this file, checked, then given to sbatch.

Three styles. `array`: parts of the campaign, each a task of an array and a process of its own, and a job after them
that writes the leaderboard. `shared`: a Ray of the job's own on nodes that others use too. `exclusive`: `ray
symmetric-run` on nodes of one's own. Every job saves before its time is up and queues itself again.
"""

import getpass
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from pydantic import Field, model_validator

from efface.config_files import StrictModel
from efface.errors import UserError, did_you_mean
from efface.files import is_remote, write_atomic
from efface.launch.clusters.cluster_profile import ClusterProfile, Line, ShellWord, check_resources
from efface.launch.clusters.launch_record import LaunchRecord, active_records, append_records
from efface.launch.clusters.launch_spec import LaunchSpec
from efface.launch.launcher import LAUNCHERS, Launch, Launcher, State, Submission, SubmitOptions
from efface.plain_files import read_plain

TEMPLATES = Path(__file__).parent / "templates" / "slurm"
Style = Literal["array", "shared", "exclusive"]

OURS = "#SBATCH --job-name=efface-"
"""A line of every script that is written here."""

STATES: dict[str, State] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_HOLD": "pending",
    "REQUEUE_FED": "pending",
    "SUSPENDED": "pending",
    "RUNNING": "running",
    "COMPLETING": "running",
    "STAGE_OUT": "running",
    "SIGNALING": "running",
    "COMPLETED": "done",
    "CANCELLED": "stopped",
}
"""All others are ways to fail."""
QUIETLY: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "capture_output": True,
    "encoding": "utf-8",
    "errors": "replace",
    "timeout": 60,
}
"""How SLURM's commands are run: within 60 seconds, and what they print is kept."""


class SlurmSettings(StrictModel):
    """A part of a SLURM cluster. CPUs, GPUs and memory are those of one array task, or of each node of a Ray."""

    style: Style = Field(
        "array", description="parts without Ray; Ray on nodes that others use too; Ray on nodes of one's own"
    )
    partition: ShellWord | None = Field(None, description="default: the cluster's default partition")
    account: ShellWord | None = Field(None, description="default: the user's own")
    qos: ShellWord | None = Field(None, description="quality of service; default: the account's")
    constraint: ShellWord | None = Field(None, description="features a node must have")
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")] = Field(
        "01:00:00", description="limit of a job; it saves and queues again before"
    )
    parts: int = Field(8, ge=1, le=1000, description="tasks of an array, at most one for each model")
    nodes: int = Field(1, ge=1, description="nodes of a Ray")
    cpus: int = Field(1, ge=1, description="cores")
    gpus: int = Field(0, ge=0, description="whole GPUs")
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None = Field(None, description="such as 32G")
    modules: tuple[ShellWord, ...] = Field((), description="loaded first")
    setup: tuple[Line, ...] = Field((), description="shell lines before the work, such as `source env/bin/activate`")
    container: ShellWord | None = Field(None, description="image for srun --container-image (Pyxis)")
    mounts: tuple[ShellWord, ...] = Field((), description="of the container, FROM:TO")
    warn_seconds: int = Field(120, ge=5, description="this long before the time limit the work begins to save")
    requeues: int = Field(20, ge=0, description="how often a job may queue itself again")

    @model_validator(mode="after")
    def _check_time(self) -> "SlurmSettings":
        if slurm_time_to_seconds(self.time) < 2 * self.warn_seconds:
            raise ValueError(f"time is {self.time}, should be at least twice warn_seconds, {self.warn_seconds}")
        return self


@dataclass(frozen=True, kw_only=True)
class SlurmOptions(SubmitOptions):
    """Write batch scripts for a campaign and queue them."""

    style: Annotated[
        str | None,
        typer.Option(
            help="array, shared or exclusive: parts without Ray, or a Ray on shared nodes or on nodes of its own."
        ),
    ] = None


SlurmLaunch = Launch[SlurmSettings, SlurmOptions]


@LAUNCHERS.register("slurm")
class Slurm(Launcher[SlurmSettings, SlurmOptions]):
    """SLURM, by its own commands on this machine."""

    name = "slurm"
    id_pattern = r"[1-9][0-9]{0,9}"
    settings = SlurmSettings
    options = SlurmOptions

    def render(self, launch: SlurmLaunch) -> dict[str, str]:
        """The text of each script by its path, in the order in which they are submitted."""
        spec, settings = launch.spec, launch.settings
        style = _style(launch)
        if style != "array" and settings.nodes > 1 and launch.profile.listen != "nodes":
            raise UserError(
                f"cluster '{launch.profile.name}': slurm.nodes is {settings.nodes}, and the nodes of a Ray have to "
                "reach each other: set listen: nodes, or nodes: 1, or use --style array"
            )
        folder = launch_folder(spec)
        if re.search(r"[\s%\\\"']", str(folder)):
            raise UserError(
                f"{folder}: SLURM takes no log file there; give --out a path without blanks, quotes, % and \\"
            )
        return {f"{folder / name}.sh": text for name, text in _scripts(launch, style, folder).items()}

    def check(self, launch: SlurmLaunch, texts: Mapping[str, str]) -> None:
        _check_scripts(launch_folder(launch.spec), texts)
        _check(launch.spec, launch.profile, launch.settings, texts)

    def submit(self, launch: SlurmLaunch, texts: Mapping[str, str]) -> Submission:
        """Write the scripts and queue them. Where jobs of this run folder still wait or run, nothing is queued."""
        from efface.cluster.run import open_run

        spec = launch.spec
        active = _active(launch)
        if active:
            return Submission(active, new=False, notes=(f"scripts and logs: {launch_folder(spec)}",))
        open_run(spec.campaign, spec.folder)
        folder = launch_folder(spec)
        (folder / "stopped").unlink(missing_ok=True)
        write_atomic(folder / "campaign.yaml", spec.text.encode())
        for path, text in texts.items():
            write_atomic(Path(path), text.encode())
        jobs: list[LaunchRecord] = []
        for path in texts:
            after = [f"--dependency=afterany:{jobs[-1].id}"] if jobs else []
            number = _run_slurm("sbatch", "--parsable", *after, path).split(";")[0].strip()
            jobs.append(LaunchRecord(self.name, Path(path).stem, number, launch.profile.name))
            append_records(spec.folder, jobs)
        return Submission(jobs, new=True, notes=(f"scripts and logs: {folder}",))

    def state(self, id: str, profile: ClusterProfile | None) -> State:
        """The queue knows what is there and what has just ended; accounting, where a cluster has it, the rest."""
        queue = _output_lines("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={id}")
        if queue is None:
            return "unknown"
        words = queue or _output_lines(
            "sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={id}"
        )
        if not words:
            return "gone"
        states = [STATES.get(word.split()[0].rstrip("+"), "failed") for word in words]
        order: tuple[State, ...] = ("running", "pending", "failed", "stopped", "done")
        return next(state for state in order if state in states)

    def stop(self, launch: SlurmLaunch) -> list[str]:
        """Cancel what waits or runs; a job that runs saves first."""
        numbers = [job.id for job in _active(launch)]
        if not numbers:
            raise UserError(f"{launch.spec.out}: no job of SLURM waits or runs for it")
        write_atomic(launch_folder(launch.spec) / "stopped", b"")  # nothing of it begins any more
        _run_slurm("scancel", *numbers)
        return numbers


def launch_folder(spec: LaunchSpec) -> Path:
    """Where scripts and their logs are: in the run folder, or beside where the run of an object store would be."""
    folder = Path("runs") / spec.campaign.name if is_remote(spec.folder) else spec.folder
    return folder.absolute() / "launch"


def slurm_time_to_seconds(time: str) -> float:
    """Of a time as SLURM writes it: minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    if not time[:1].isdigit():
        return float("inf")  # infinite, n/a
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def _style(launch: SlurmLaunch) -> Style:
    chosen = launch.options.style or launch.settings.style
    if chosen not in get_args(Style):
        raise UserError(f"--style: unknown '{chosen}', {did_you_mean(chosen, get_args(Style))}")
    return chosen  # type: ignore[return-value]


def _active(launch: SlurmLaunch) -> list[LaunchRecord]:
    return [job for job in active_records(launch.spec.folder, launch.profile) if job.launcher == Slurm.name]


def _scripts(launch: SlurmLaunch, style: Style, folder: Path) -> dict[str, str]:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from efface.cluster.campaign.planner import plan_campaign

    spec, settings = launch.spec, launch.settings
    container = [f"--container-image={settings.container}"] if settings.container else []
    mounts = [f"--container-mounts={','.join(settings.mounts)}"] if settings.container and settings.mounts else []
    context: dict[str, Any] = {
        "spec": spec,
        "config": settings,
        "listen": launch.profile.listen,
        "environment": launch.profile.environment,
        "launch": str(folder),
        "campaign": str(folder / "campaign.yaml"),
        "parts": min(settings.parts, len(plan_campaign(spec.campaign, fetch=False).models)),
        "path": None if settings.container else str(Path(sys.executable).parent),
        "srun": shlex.join(["srun", f"--cpus-per-task={settings.cpus}", *container, *mounts]),
        "command": lambda campaign, *options: shlex.join(spec.command(campaign, *options)),
    }
    engine = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    engine.filters["sh"] = shlex.quote
    names = ["array", "leaderboard"] if style == "array" else [style]
    return {name: engine.get_template(f"{name}.sh.j2").render(context) for name in names}


def _check(spec: LaunchSpec, profile: ClusterProfile, config: SlurmSettings, texts: Mapping[str, str]) -> None:
    where = f"cluster '{profile.name}': slurm"
    check_resources(spec.campaign, where, config.cpus, config.gpus)
    partitions = _partitions()
    if config.partition and config.partition not in partitions:
        raise UserError(
            f"{where}.partition: unknown '{config.partition}', {did_you_mean(config.partition, partitions)}"
        )
    accounts = _accounts()
    if config.account and accounts and config.account not in accounts:
        raise UserError(f"{where}.account: unknown '{config.account}', {did_you_mean(config.account, accounts)}")
    chosen = [partitions[config.partition]] if config.partition else list(partitions.values())
    target = f"partition '{config.partition}'" if config.partition else "this cluster"
    gpus, limit = max(gpus for gpus, _ in chosen), max((limit for _, limit in chosen), key=slurm_time_to_seconds)
    if config.gpus > gpus:
        raise UserError(f"{where}.gpus is {config.gpus}, and a node of {target} has at most {gpus}")
    if slurm_time_to_seconds(config.time) > slurm_time_to_seconds(limit):
        raise UserError(f"{where}.time is {config.time}, and a job of {target} may take at most {limit}")
    with tempfile.TemporaryDirectory(prefix="efface-") as scratch:
        for path, text in texts.items():
            write_atomic(Path(scratch) / Path(path).name, text.encode())
            try:
                _run_slurm("sbatch", "--test-only", f"{scratch}/{Path(path).name}")
            except UserError as error:
                if "Invalid account" not in str(error):
                    raise
                account = f"is '{config.account}'" if config.account else "is missing"
                yours = f"yours are {', '.join(accounts)}" if accounts else "you have none there"
                raise UserError(f"{where}.account {account}, and {target} takes no such job; {yours}") from None


def _check_scripts(folder: Path, texts: Mapping[str, str]) -> None:
    """Raises UserError where files that this module did not write would be replaced."""
    if any(path.is_file() and OURS.encode() in read_plain(path) for path in folder.glob("*.sh")):
        return
    for path in (folder / "campaign.yaml", *map(Path, texts)):
        if path.exists():
            raise UserError(f"{path}: exists already and was not written by a launch; give --out another folder")


def _accounts() -> list[str]:
    """Of this user; none where the cluster keeps no accounts."""
    try:
        mine = ("show", "assoc", f"user={getpass.getuser()}", "format=account")
        lines = _run_slurm("sacctmgr", "--noheader", "--parsable2", *mine).splitlines()
    except (UserError, KeyError, OSError):  # the last two: a user without a name
        return []
    return sorted({line.strip() for line in lines if line.strip()})


def _partitions() -> dict[str, tuple[int, str]]:
    """Each partition: the most GPUs that a node of it has, and its time limit. Raises UserError where there is none."""
    found: dict[str, tuple[int, str]] = {}
    for line in _run_slurm("sinfo", "--noheader", "--format=%R|%l|%G").splitlines():
        name, limit, gres = line.strip().split("|", 2)
        gpus = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))
        found[name] = (max(gpus, found.get(name, (0, ""))[0]), limit)
    if not found:
        raise UserError("SLURM shows no partition to this user")
    return found


def _run_slurm(*command: str) -> str:
    """What a command of SLURM prints. Raises UserError with its own words where it refuses."""
    try:
        done = subprocess.run(command, env=_clean_environment(), **QUIETLY)
    except FileNotFoundError:
        raise UserError(f"`{command[0]}` is not on this machine; submit where SLURM's commands are") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"`{command[0]}` does not answer; is SLURM's controller up?") from None
    if done.returncode:
        messages = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        words = "; ".join(line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in messages)
        raise UserError(f"SLURM refuses ({command[0]}): {words or f'exit code {done.returncode}'}")
    return done.stdout


def _clean_environment() -> dict[str, str]:
    """Without the settings that sbatch would take from variables over those in the script."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SBATCH_", "SLURM_JOB"))}


def _output_lines(*command: str) -> list[str] | None:
    """The lines a command prints, none where it refuses; None where it is not there or does not answer."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return [] if "Invalid job id" in done.stderr or command[0] == "sacct" else None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
