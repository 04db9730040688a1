"""`efface submit slurm`: readable scripts from the templates in `launch/slurm/`, checked, then given to sbatch.

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
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from efface.errors import UserError, did_you_mean
from efface.files import is_remote, write_atomic
from efface.launch.submit.launch_record import LaunchRecord, active_records, append_records
from efface.launch.submit.launch_spec import LaunchSpec
from efface.launch.submit.profile import ClusterProfile, check_resources, slurm_time_to_seconds

TEMPLATES = Path(__file__).parents[1] / "slurm"


def scripts(spec: LaunchSpec, cluster: ClusterProfile, style: str, models: int) -> dict[str, str]:
    """The text of each script by its name, in the order in which they are submitted."""
    config = cluster.slurm
    if style != "array" and config.nodes > 1 and cluster.listen != "nodes":
        raise UserError(
            f"cluster '{cluster.name}': slurm.nodes is {config.nodes}, and nodes of a Ray have to reach each other: "
            "set listen: nodes, or nodes: 1, or use --style array"
        )
    launch = launch_folder(spec)
    container = [f"--container-image={config.container}"] if config.container else []
    mounts = [f"--container-mounts={','.join(config.mounts)}"] if config.container and config.mounts else []
    context: dict[str, Any] = {
        "spec": spec,
        "config": config,
        "listen": cluster.listen,
        "environment": cluster.environment,
        "launch": str(launch),
        "campaign": str(launch / "campaign.yaml"),
        "parts": min(config.parts, models),
        "path": None if config.container else str(Path(sys.executable).parent),
        "srun": shlex.join(["srun", f"--cpus-per-task={config.cpus}", *container, *mounts]),
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


def launch_folder(spec: LaunchSpec) -> Path:
    """Where scripts and their logs lie: in the run folder, or beside where the run of an object store would be."""
    folder = Path("runs") / spec.campaign.name if is_remote(spec.folder) else spec.folder
    return folder.absolute() / "launch"


def validate(spec: LaunchSpec, cluster: ClusterProfile, script_texts: dict[str, str]) -> None:
    """Ask SLURM whether it would take the scripts, before anything is written. Raises UserError in one sentence."""
    config = cluster.slurm
    where = f"cluster '{cluster.name}': slurm"
    check_resources(spec.campaign, where, config.cpus, config.gpus)
    launch = str(launch_folder(spec))
    if re.search(r"[\s%\\\"']", launch):
        raise UserError(f"{launch}: SLURM takes no log file there; give --out a path without blanks, quotes, % and \\")
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
        for name, text in script_texts.items():
            write_atomic(Path(scratch) / name, text.encode())
            try:
                _run_slurm("sbatch", "--test-only", f"{scratch}/{name}")
            except UserError as error:
                if "Invalid account" not in str(error):
                    raise
                account = f"is '{config.account}'" if config.account else "is missing"
                yours = f"yours are {', '.join(accounts)}" if accounts else "you have none there"
                raise UserError(f"{where}.account {account}, and {target} takes no such job; {yours}") from None


def submit(
    spec: LaunchSpec, cluster: ClusterProfile, style: str, script_texts: dict[str, str]
) -> tuple[list[LaunchRecord], bool]:
    """Write the scripts and queue them; the jobs, and whether they are new.

    Where jobs of this run folder still wait or run, they are the answer and nothing is queued. Raises UserError.
    """
    active = [job for job in active_records(spec.folder) if job.launcher == "slurm"]
    if active:
        return active, False
    launch = launch_folder(spec)
    (launch / "stopped").unlink(missing_ok=True)
    write_atomic(launch / "campaign.yaml", spec.text.encode())
    for name, text in script_texts.items():
        write_atomic(launch / f"{name}.sh", text.encode())
    jobs: list[LaunchRecord] = []
    for name in script_texts:
        after = [f"--dependency=afterany:{jobs[-1].id}"] if jobs else []
        number = _run_slurm("sbatch", "--parsable", *after, str(launch / f"{name}.sh")).split(";")[0].strip()
        jobs.append(LaunchRecord("slurm", name, number))
        append_records(spec.folder, jobs)
    return jobs, True


def _accounts() -> list[str]:
    """Of this user; none where the cluster keeps no accounts."""
    mine = ("show", "assoc", f"user={getpass.getuser()}", "format=account")
    try:
        lines = _run_slurm("sacctmgr", "--noheader", "--parsable2", *mine).splitlines()
    except UserError:
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=_clean_environment())
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
