"""`efface submit ray`: a campaign as a job of a Ray cluster, over HTTP and with a token.

The cluster gets two small things: a wheel of this efface and the campaign's text. Weights, caches and results are never
uploaded. The job's id is the campaign's, so submitting twice finds the same job. A job dies with its cluster; submitted
again to the next one, the campaign goes on from its run folder.
"""

import asyncio
import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from efface.config_files import StrictModel
from efface.errors import JobFailure, UserError
from efface.files import local_path
from efface.launch.clusters.cluster_profile import KEY_MATERIAL, ClusterProfile
from efface.launch.clusters.launch_record import LaunchRecord, append_records
from efface.launch.clusters.launch_spec import LaunchSpec
from efface.launch.clusters.wheel import write_wheel
from efface.launch.launcher import LAUNCHERS, Launch, Launcher, State, Submission, SubmitOptions
from efface.text import json_text, shown

STOP_WAIT_SECONDS = 120
"""How long a job that is asked to stop has for saving; Ray's own default is 3."""
STATES: dict[str, State] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
MAX_TOKEN_FILE = 4096
"""Characters."""
TOKEN = re.compile(r"[!-~]+")
"""What a token may be: one word of printable ASCII. A private key or a file of credentials is none."""

logger = logging.getLogger(__name__)


class RaySettings(StrictModel):
    """A Ray cluster that is there, as its head's job server shows it."""

    address: str = Field(
        "http://127.0.0.1:8265", pattern=r"^https?://\S+$", description="the dashboard's URL, behind a tunnel or TLS"
    )
    token_file: str | None = Field(None, description="file with Ray's token; default: what Ray itself finds")


@dataclass(frozen=True, kw_only=True)
class RayOptions(SubmitOptions):
    """Submit a campaign as a job of a Ray cluster; run again, it finds the job that is there."""

    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its output until it ends.")] = False


RayLaunch = Launch[RaySettings, RayOptions]


@LAUNCHERS.register("ray")
class RayJob(Launcher[RaySettings, RayOptions]):
    """A Ray cluster that is there, by its head's job server."""

    name = "ray"
    id_pattern = r"efface-[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[0-9a-f]{12}(-[0-9]{1,6})?"
    settings = RaySettings
    options = RayOptions

    def render(self, launch: RayLaunch) -> dict[str, str]:
        """The campaign's file, and the job without what is uploaded."""
        return {"campaign.yaml": launch.spec.text, "job.json": json_text(_job(launch)) + "\n"}

    def submit(self, launch: RayLaunch, texts: Mapping[str, str]) -> Submission:
        """Submit the campaign, or find the job that does it.

        A job that failed, or was stopped, is followed by another with the next number.
        """
        spec, cluster = launch.spec, launch.profile.name
        with _client(launch.settings) as client, tempfile.TemporaryDirectory(prefix="efface-") as scratch:
            attempts = _attempts(client, spec)
            if attempts and attempts[-1][1] in ("PENDING", "RUNNING", "SUCCEEDED"):
                return Submission([LaunchRecord(self.name, "campaign", attempts[-1][0], cluster)], new=False)
            id = spec.id if not attempts else f"{spec.id}-{len(attempts) + 1}"
            job = LaunchRecord(self.name, "campaign", id, cluster)
            folder = Path(scratch) / "campaign"
            folder.mkdir()
            (folder / "campaign.yaml").write_text(texts["campaign.yaml"], encoding="utf-8")
            wheel = write_wheel(Path(scratch))
            logger.info("uploading efface (%.0f MiB) and the campaign", wheel.stat().st_size / 2**20)
            request = _job(launch)
            uploads = {"working_dir": str(folder), "py_modules": [str(wheel)]}
            request["runtime_env"] = {**uploads, **request["runtime_env"]}
            try:
                client.submit_job(submission_id=id, **request)
            except RuntimeError as error:
                if "already" not in str(error):
                    raise
                return Submission([job], new=False)  # somebody was faster
        if spec.run_folder_is_shared:
            append_records(spec.folder, [job])
        return Submission([job], new=True)

    def follow(self, launch: RayLaunch, submission: Submission) -> bool:
        """Print what a job prints until it ends. Raises JobFailure where its cluster goes away."""
        if not launch.options.follow:
            return True
        import aiohttp

        (job,) = submission.jobs

        async def show(client: Any) -> None:
            async for lines in client.tail_job_logs(job.id):
                typer.echo("\n".join(map(shown, lines.split("\n"))), nl=False)

        with _client(launch.settings) as client:
            try:
                asyncio.run(show(client))
                state = str(client.get_job_status(job.id))
            except (OSError, RuntimeError, aiohttp.ClientError):
                raise JobFailure(
                    f"the Ray cluster at {launch.settings.address} went away; what is finished is in "
                    f"{launch.spec.out}, and the same command goes on from there once there is a cluster again"
                ) from None
            typer.echo(f"{job.id}: {STATES.get(state, shown(state))}")
            return state == "SUCCEEDED"

    def state(self, id: str, profile: ClusterProfile | None) -> State:
        if profile is None:
            return "unknown"
        with _client(self.section(profile)) as client:
            known = {found.submission_id: str(found.status) for found in client.list_jobs()}
        return STATES.get(known[id], "unknown") if id in known else "gone"

    def stop(self, launch: RayLaunch) -> list[str]:
        with _client(launch.settings) as client:
            running = [id for id, state in _attempts(client, launch.spec) if state in ("PENDING", "RUNNING")]
            if not running:
                raise UserError(f"the Ray cluster at {launch.settings.address} runs no job '{launch.spec.id}'")
            client.stop_job(running[-1])
            return running[-1:]


def _job(launch: RayLaunch) -> dict[str, Any]:
    """What `JobSubmissionClient.submit_job` is given, without uploads and id."""
    stop_wait = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)}
    return {
        "entrypoint": shlex.join(launch.spec.command("campaign.yaml")),
        "runtime_env": {"env_vars": {**launch.profile.environment, **stop_wait}},
        "metadata": {"campaign": launch.spec.campaign.name, "out": launch.spec.out},
        "entrypoint_num_cpus": 0,
        "entrypoint_num_gpus": 0,
    }


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
def _client(config: RaySettings) -> Iterator[Any]:
    """A client that shows its token. Raises UserError where the cluster cannot be used, or takes jobs from anyone."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    headers = {"Authorization": f"Bearer {_token(config)}"}
    # Ray would silently prefer these to the profile's address.
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


def _token_file(config: RaySettings) -> Path:
    """The profile's file, otherwise the one that Ray looks for."""
    return local_path(config.token_file or os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")


def _token(config: RaySettings) -> str:
    """The token for the profile's cluster. Raises UserError where there is none, or the file holds something else."""
    if not config.token_file and os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    file = _token_file(config)
    try:
        with file.open(encoding="utf-8") as stream:
            token = stream.read(MAX_TOKEN_FILE + 1).strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{file}: no token can be read there; put the cluster's there (`ray get-auth-token`), "
            "or name its file in ray.token_file"
        ) from None
    if len(token) > MAX_TOKEN_FILE or not TOKEN.fullmatch(token) or KEY_MATERIAL.search(token):
        raise UserError(f"{file}: does not look like a token of Ray, should hold one word, and nothing was sent")
    return token
