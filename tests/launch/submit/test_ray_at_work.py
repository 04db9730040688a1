"""Campaigns on a real Ray cluster: over HTTP, with a token, and past the cluster's death."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from command import RunEfface
from ray_head import RayHead
from run_results import finished_shards, methods, results
from tiny_campaign import UCE

from efface.launch.clusters.launch_record import launch_states

Campaign = Callable[..., Path]
LIMITS = {"adjacent": 1, "retain": 1}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    head = RayHead(tmp_path_factory.mktemp("head"))
    head.start()
    yield head
    head.kill()


@pytest.fixture
def cluster(head: RayHead, profile: Callable[..., str], user_profiles: Path) -> str:
    """A profile among the user's own, by its name, so that launch records lead to it."""
    path = Path(profile(ray={"address": head.address, "token_file": str(head.token_file)}))
    user_profiles.mkdir(parents=True)
    path.rename(user_profiles / "test.yaml")
    return "test"


@pytest.fixture
def arguments(cluster: str, campaign_file: Campaign, tmp_path: Path) -> Callable[[int], list[str]]:
    """Arguments for a campaign of 14 images and as many more for each further image of a prompt."""

    def write(images: int) -> list[str]:
        evaluation = {"images_per_prompt": images, "prompts_per_concept": LIMITS, "shard_size": 4}
        campaign = campaign_file(methods=[UCE], evaluation=evaluation)
        return [str(campaign), "--cluster", cluster, "--out", str(tmp_path / "run")]

    return write


def wait(what: Callable[[], object], head: RayHead, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} seconds: {head.jobs_as_text()}"
        time.sleep(0.3)


def test_without_the_right_token_no_job_is_accepted(
    efface: RunEfface, head: RayHead, profile: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong").write_text("0" * 64)
    wrong = profile(ray={"address": head.address, "token_file": str(tmp_path / "wrong")})
    result = efface("submit", "ray", "demo", "--cluster", wrong)
    assert result.error_message == f"the Ray cluster at {head.address} refuses the token of {tmp_path / 'wrong'}"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    none = profile(ray={"address": head.address})
    assert "no token can be read there" in efface("submit", "ray", "demo", "--cluster", none).error_message
    job = json.dumps({"entrypoint": "true"}).encode()
    for shown in ({}, {"Authorization": "Bearer " + "0" * 64}):
        request = urllib.request.Request(
            f"{head.address}/api/jobs/", job, {"Content-Type": "application/json", **shown}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        assert refused.value.code in (401, 403)
    assert head.jobs() == []


class OpenJobServer(BaseHTTPRequestHandler):
    """A job server that needs no token."""

    requested: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requested.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *words: object) -> None:
        pass


def test_nothing_is_submitted_to_a_cluster_that_takes_jobs_from_anyone(
    efface: RunEfface, profile: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), OpenJobServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        cluster = profile(ray={"address": address, "token_file": str(tmp_path / "token")})
        result = efface("submit", "ray", "demo", "--cluster", cluster).error_message
        server.shutdown()
    assert result.startswith(f"the Ray cluster at {address} takes jobs from anyone who reaches it")
    assert OpenJobServer.requested == ["/api/jobs/"]


def test_its_servers_are_on_loopback_alone(head: RayHead) -> None:
    wait(lambda: len(head.listening_addresses()) > 5, head)  # they come one after the other
    assert all(
        where.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:", "[::1]:")) for where in head.listening_addresses()
    )


@pytest.mark.slow
def test_a_campaign_runs_once_however_often_it_is_submitted(
    efface: RunEfface, head: RayHead, arguments: Callable[[int], list[str]], tmp_path: Path
) -> None:
    first = efface("submit", "ray", *arguments(1))
    second = efface("submit", "ray", *arguments(1), "--follow")
    third = efface("submit", "ray", *arguments(1))
    assert (first.code, second.code, third.code) == (0, 0, 0), second
    number = first.out.split()[-1]
    assert f"submitted: ray campaign {number}" in first.out
    assert f"there already: ray campaign {number}" in second.out and f"{number}: done" in second.out
    assert third.out.endswith(f"\nthere already: ray campaign {number}\n")
    assert methods(tmp_path / "run") == ["base", "uce"]
    assert launch_states(tmp_path / "run") == [("ray campaign", number, "done")]
    assert head.token_file.read_text() not in head.jobs_as_text()
    here = efface("run", arguments(1)[0], "--out", tmp_path / "here", "--workers", "0")
    assert here.code == 0 and results(tmp_path / "run") == results(tmp_path / "here")


@pytest.mark.slow
def test_a_run_folder_that_is_not_there_yet_still_knows_its_job(
    efface: RunEfface, arguments: Callable[[int], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = efface("submit", "ray", *arguments(1)[:-2], "--follow")
    assert result.code == 0, result
    assert launch_states(tmp_path / "runs" / "tiny")[0][0] == "ray campaign"


@pytest.mark.slow
def test_a_job_that_was_stopped_goes_on_when_it_is_submitted_again(
    efface: RunEfface, head: RayHead, arguments: Callable[[int], list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = efface("submit", "ray", *arguments(20)).out.split()[-1]
    wait(lambda: finished_shards(run), head)
    assert efface("submit", "ray", *arguments(20), "--stop").out == f"stopped: {first}\n"
    wait(lambda: launch_states(run) == [("ray campaign", first, "stopped")], head)
    done = finished_shards(run)
    assert "runs no job" in efface("submit", "ray", *arguments(20), "--stop").error_message
    again = efface("submit", "ray", *arguments(20), "--follow")
    assert again.code == 0 and f"submitted: ray campaign {first}-2" in again.out, again
    assert methods(run) == ["base", "uce"]
    assert done == {path: path.stat().st_mtime_ns for path in done}


@pytest.mark.slow
def test_a_campaign_outlives_its_cluster(
    efface: RunEfface, head: RayHead, arguments: Callable[[int], list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = efface("submit", "ray", *arguments(20)).out.split()[-1]
    wait(lambda: finished_shards(run), head)
    death = threading.Timer(2, head.kill)
    death.start()
    followed = efface("submit", "ray", *arguments(20), "--follow")
    death.join()
    assert followed.out.endswith(f"there already: ray campaign {first}\n")
    assert followed.code == 1 and f"went away; what is finished is in {run}" in followed.err, followed
    done = finished_shards(run)
    assert "no Ray cluster answers" in efface("submit", "ray", *arguments(20)).error_message
    assert launch_states(run) == [("ray campaign", first, "unknown")]
    head.start()
    assert launch_states(run) == [("ray campaign", first, "gone")]
    again = efface("submit", "ray", *arguments(20), "--follow")
    assert again.code == 0 and f"submitted: ray campaign {first}" in again.out, again
    assert methods(run) == ["base", "uce"]
    assert done == {path: path.stat().st_mtime_ns for path in done}


@pytest.mark.slow
def test_rays_own_command_does_as_well(head: RayHead, campaign_file: Campaign, tmp_path: Path) -> None:
    """`ray job submit --working-dir . -- efface run …`, on nodes that have efface."""
    campaign = campaign_file(methods=[UCE], evaluation={"images_per_prompt": 1, "prompts_per_concept": LIMITS})
    folder = tmp_path / "here"
    folder.mkdir()
    campaign.rename(folder / "campaign.yaml")
    head.install_efface()
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address]
    command += ["--working-dir", ".", "--", "efface", "run", "campaign.yaml", f"--out={tmp_path}/run"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token_file)}
    done = subprocess.run(command, cwd=folder, env={**os.environ, **token}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert methods(tmp_path / "run") == ["base", "uce"]
