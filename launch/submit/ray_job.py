"""`efface submit ray`: a campaign as a job of a Ray cluster, over HTTP and with a token.

The cluster gets two small things: a wheel of this efface and the campaign's text. Weights, caches and results are never
uploaded. The job's id is the campaign's, so submitting twice finds the same job. A job dies with its cluster; submitted
again to the next one, the campaign goes on from its run folder.
"""

import asyncio
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from efface.errors import JobFailure, UserError
from efface.launch.submit.launch_record import LaunchRecord, append_records
from efface.launch.submit.launch_spec import LaunchSpec
from efface.launch.submit.profile import ClusterProfile, RayConfig, read_cluster
from efface.launch.submit.wheel import write_wheel

STOP_WAIT_SECONDS = 120
"""How long a job that is told to stop has for saving; Ray's own default is 3."""
STATES = {"PENDING": "pending", "RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped"}


def submit(spec: LaunchSpec, cluster: ClusterProfile, profile: str) -> tuple[LaunchRecord, bool]:
    """Submit the campaign, or find the job that does it; the job, and whether it is new. Raises UserError.

    A job that failed, or was stopped, is followed by another with the next number.
    """
    with _client(cluster.ray) as client, tempfile.TemporaryDirectory(prefix="efface-") as scratch:
        attempts = _attempts(client, spec)
        if attempts and attempts[-1][1] in ("PENDING", "RUNNING", "SUCCEEDED"):
            return LaunchRecord("ray", "campaign", attempts[-1][0], profile), False
        job = LaunchRecord("ray", "campaign", spec.id if not attempts else f"{spec.id}-{len(attempts) + 1}", profile)
        folder = Path(scratch) / "campaign"
        folder.mkdir()
        (folder / "campaign.yaml").write_text(spec.text, encoding="utf-8")
        wheel = write_wheel(Path(scratch))
        typer.echo(f"uploads efface ({wheel.stat().st_size / 2**20:.0f} MiB) and the campaign")
        try:
            client.submit_job(
                entrypoint=shlex.join(spec.command("campaign.yaml")),
                submission_id=job.id,
                runtime_env={
                    "working_dir": str(folder),
                    "py_modules": [str(wheel)],
                    "env_vars": {**cluster.environment, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)},
                },
                metadata={"campaign": spec.campaign.name, "out": spec.out},
                entrypoint_num_cpus=0,
                entrypoint_num_gpus=0,
            )
        except RuntimeError as error:
            if "already" not in str(error):
                raise
            return job, False  # somebody was faster
    if spec.run_folder_is_shared:
        append_records(spec.folder, [job])
    return job, True


def follow(spec: LaunchSpec, cluster: ClusterProfile, job: LaunchRecord) -> bool:
    """Print what a job prints until it ends; whether it succeeded. Raises JobFailure where its cluster goes away."""

    import aiohttp

    async def show(client: Any) -> None:
        async for lines in client.tail_job_logs(job.id):
            typer.echo(lines, nl=False)

    with _client(cluster.ray) as client:
        try:
            asyncio.run(show(client))
            state = str(client.get_job_status(job.id))
        except (OSError, RuntimeError, aiohttp.ClientError):
            raise JobFailure(
                f"the Ray cluster at {cluster.ray.address} went away; what is finished lies in {spec.out}, and the "
                "same command goes on from there once there is a cluster again"
            ) from None
        typer.echo(f"{job.id}: {STATES.get(state, state)}")
        return state == "SUCCEEDED"


def stop(spec: LaunchSpec, cluster: ClusterProfile) -> str:
    """Tell the campaign's job to save and stop; its id. Raises UserError where none runs."""
    with _client(cluster.ray) as client:
        running = [number for number, state in _attempts(client, spec) if state in ("PENDING", "RUNNING")]
        if not running:
            raise UserError(f"the Ray cluster at {cluster.ray.address} runs no job '{spec.id}'")
        client.stop_job(running[-1])
        return running[-1]


def state_of(job: LaunchRecord) -> str:
    """How a job is, in the words of `launch_states`."""
    try:
        with _client(read_cluster(job.cluster).ray) as client:
            known = {found.submission_id: str(found.status) for found in client.list_jobs()}
    except UserError:
        return "unknown"
    return STATES.get(known[job.id], "unknown") if job.id in known else "gone"


def _attempts(client: Any, spec: LaunchSpec) -> list[tuple[str, str]]:
    """Jobs of this campaign that the cluster knows, and their status, oldest first."""
    pattern = re.compile(rf"{re.escape(spec.id)}(?:-(\d+))?")
    found = []
    for job in client.list_jobs():
        match = pattern.fullmatch(job.submission_id or "")
        if match:
            found.append((int(match[1] or 1), job.submission_id, str(job.status)))
    return [(name, state) for _, name, state in sorted(found)]


@contextmanager
def _client(config: RayConfig) -> Iterator[Any]:
    """A client that shows its token. Raises UserError where the cluster cannot be used, or takes jobs from anyone."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    headers = {"Authorization": f"Bearer {_token(config)}"}
    # These would silently take the place of the profile's address.
    unset = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        if requests.get(f"{config.address.rstrip('/')}/api/jobs/", timeout=20).status_code == 200:
            raise UserError(
                f"the Ray cluster at {config.address} takes jobs from anyone who reaches it; "
                "start its head with RAY_AUTH_MODE=token"
            )
        yield JobSubmissionClient(config.address, headers=headers)
    except (requests.RequestException, ConnectionError):
        raise UserError(f"no Ray cluster answers at {config.address}; give its address in ray.address") from None
    except AuthenticationError:
        raise UserError(f"the Ray cluster at {config.address} refuses the token of {_token_file(config)}") from None
    except RuntimeError as error:
        raise UserError(f"the Ray cluster at {config.address} refuses: {str(error).strip().splitlines()[0]}") from None
    finally:
        os.environ.update(unset)


def _token_file(config: RayConfig) -> Path:
    """The profile's file, else the one that Ray looks for."""
    return Path(config.token_file or os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()


def _token(config: RayConfig) -> str:
    if not config.token_file and os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    try:
        return _token_file(config).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{_token_file(config)}: no token can be read there; put the cluster's there (`ray get-auth-token`), "
            "or name its file in ray.token_file"
        ) from None
