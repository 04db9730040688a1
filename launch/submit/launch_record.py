"""`launch.json` in a run folder: which jobs of SLURM, Ray or Kubernetes were started for it, and how they are now."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from efface.errors import StorageError
from efface.files import write_json

FILE_NAME = "launch.json"
TERMINAL_STATES = ("done", "failed", "stopped", "gone")
SLURM_STATES = {
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


class LaunchRecord(NamedTuple):
    """One job of a launcher: `launcher` slurm, ray or kube; `name` of the campaign; its `id` there; the
    profile's file."""

    launcher: str
    name: str
    id: str
    cluster: str = ""


def append_records(folder: Path, jobs: list[LaunchRecord]) -> None:
    """Write down, beside what was launched before, what has been launched now. Raises StorageError."""
    kept = [job for job in read_records(folder) if job not in jobs]
    write_json(folder / FILE_NAME, {"jobs": [job._asdict() for job in (*kept, *jobs)]})


def read_records(folder: Path) -> list[LaunchRecord]:
    """All that was ever launched for a run folder, oldest first; none where nothing can be read."""
    try:
        return [LaunchRecord(**job) for job in json.loads((folder / FILE_NAME).read_bytes())["jobs"]]
    except (OSError, ValueError, KeyError, TypeError, StorageError):
        return []


def launch_states(folder: Path) -> list[tuple[str, str, str]]:
    """What was launched for a run folder: (what, id, state), oldest first.

    State: pending, running, done, failed, stopped, gone (its launcher knows it no more), unknown (nobody answers).
    """
    return [(f"{job.launcher} {job.name}", job.id, state(job)) for job in read_records(folder)]


def active_records(folder: Path) -> list[LaunchRecord]:
    """What was launched for a run folder and has not ended yet."""
    return [job for job in read_records(folder) if state(job) not in (*TERMINAL_STATES, "unknown")]


def state(job: LaunchRecord) -> str:
    """How a job is now, in the words of `launch_states`."""
    if job.launcher == "slurm":
        return _slurm_state(job.id)
    if job.launcher == "ray":
        from efface.launch.submit.ray_job import state_of

        return state_of(job)
    from efface.launch.submit.kuberay import state_of as state_of_kube

    return state_of_kube(job)


def _slurm_state(number: str) -> str:
    """The queue knows what is there and what has just ended, accounting (where a cluster has it) what is long past."""
    queue = _output_lines("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}")
    if queue is None:
        return "unknown"
    words = queue or _output_lines(
        "sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={number}"
    )
    if not words:
        return "gone"
    states = [SLURM_STATES.get(word.split()[0].rstrip("+"), "failed") for word in words]
    return next(state for state in ("running", "pending", "failed", "stopped", "done") if state in states)


def _output_lines(*command: str) -> list[str] | None:
    """The lines a command prints, none where it refuses; None where it is not there or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return [] if "Invalid job id" in done.stderr or command[0] == "sacct" else None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
