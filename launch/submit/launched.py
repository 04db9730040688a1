"""`launch.json` in a run folder: which jobs of SLURM, Ray or Kubernetes were started for it, and how they are now."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from efface.errors import StorageError
from efface.files import write_json

FILE = "launch.json"
ENDED = ("done", "failed", "stopped", "gone")
SLURM_STATES = {
    "PENDING": "waiting",
    "CONFIGURING": "waiting",
    "REQUEUED": "waiting",
    "REQUEUE_HOLD": "waiting",
    "REQUEUE_FED": "waiting",
    "SUSPENDED": "waiting",
    "RUNNING": "running",
    "COMPLETING": "running",
    "STAGE_OUT": "running",
    "SIGNALING": "running",
    "COMPLETED": "done",
    "CANCELLED": "stopped",
}
"""All others are ways to fail."""


class Job(NamedTuple):
    """One job of a launcher: `by` slurm, ray or kube; `what` of the campaign; its `id` there; the profile's file."""

    by: str
    what: str
    id: str
    cluster: str = ""


def note(folder: Path, jobs: list[Job]) -> None:
    """Write down, beside what was launched before, what has been launched now. Raises StorageError."""
    kept = [job for job in read(folder) if job not in jobs]
    write_json(folder / FILE, {"jobs": [job._asdict() for job in (*kept, *jobs)]})


def read(folder: Path) -> list[Job]:
    """All that was ever launched for a run folder, oldest first; none where nothing can be read."""
    try:
        return [Job(**job) for job in json.loads((folder / FILE).read_bytes())["jobs"]]
    except (OSError, ValueError, KeyError, TypeError, StorageError):
        return []


def launched(folder: Path) -> list[tuple[str, str, str]]:
    """What was launched for a run folder: (what, id, state), oldest first.

    State: waiting, running, done, failed, stopped, gone (its launcher knows it no more), unknown (nobody answers).
    """
    return [(f"{job.by} {job.what}", job.id, state(job)) for job in read(folder)]


def unfinished(folder: Path) -> list[Job]:
    """What was launched for a run folder and has not ended yet."""
    return [job for job in read(folder) if state(job) not in (*ENDED, "unknown")]


def state(job: Job) -> str:
    """How a job is now, in the words of `launched`."""
    if job.by == "slurm":
        return _of_slurm(job.id)
    if job.by == "ray":
        from efface.launch.submit.ray_job import state_of

        return state_of(job)
    from efface.launch.submit.kube import state_of as state_of_kube

    return state_of_kube(job)


def _of_slurm(number: str) -> str:
    """The queue knows what is there and what has just ended, accounting (where a cluster has it) what is long past."""
    queue = _words("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}")
    if queue is None:
        return "unknown"
    words = queue or _words("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={number}")
    if not words:
        return "gone"
    states = [SLURM_STATES.get(word.split()[0].rstrip("+"), "failed") for word in words]
    return next(state for state in ("running", "waiting", "failed", "stopped", "done") if state in states)


def _words(*command: str) -> list[str] | None:
    """The lines a command prints, none where it refuses; None where it is not there or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return [] if "Invalid job id" in done.stderr or command[0] == "sacct" else None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
