"""Campaigns on a real SLURM of two nodes: from `efface submit slurm` to the leaderboard, whatever happens."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import RunEfface
from run_results import finished_shards, methods, results
from slurm_cluster import SlurmCluster
from tiny_campaign import UCE

from efface.launch.clusters.launch_record import launch_states

Profile = Callable[..., str]
Campaign = Callable[..., Path]


def logs(run: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted((run / "launch").glob("*.log")))


@pytest.fixture
def submit(
    slurm: SlurmCluster, efface: RunEfface, profile: Profile, campaign_file: Campaign, tmp_path: Path
) -> Callable[..., tuple[Path, list[str]]]:
    """`submit(style, images=…, listen=…, name=…, **slurm section)`: the run folder, and the jobs' numbers."""

    def queue(
        style: str, images: int = 1, listen: str = "loopback", name: str = "run", **section: Any
    ) -> tuple[Path, list[str]]:
        evaluation = {"images_per_prompt": images, "prompts_per_concept": {"adjacent": 1, "retain": 1}, "shard_size": 4}
        campaign = campaign_file(methods=[UCE], evaluation=evaluation)
        run = tmp_path / name
        cluster = profile(listen=listen, slurm={"style": style, **section})
        result = efface("submit", "slurm", campaign, "--cluster", cluster, "--out", run)
        assert result.code == 0, result
        numbers = [line.split()[-1] for line in result.out.splitlines() if line.startswith("submitted: slurm")]
        assert numbers, result
        return run, numbers

    return queue


STYLES = ["array", "shared", "exclusive"]
Submit = Callable[..., tuple[Path, list[str]]]


@pytest.mark.slow
def test_an_array_without_ray(
    slurm: SlurmCluster, submit: Submit, efface: RunEfface, campaign_file: Campaign, tmp_path: Path
) -> None:
    """And its run folder is that of a run on this machine, image by image."""
    run, (array, leaderboard) = submit("array", parts=2)
    assert launch_states(run)[0][:2] == ("slurm array", array)
    again = efface("submit", "slurm", tmp_path / "campaign.yaml", "--cluster", tmp_path / "cluster.yaml", "--out", run)
    assert again.code == 0 and f"\nthere already: slurm array {array}\n" in again.out
    slurm.wait(slurm.empty, 180, lambda: logs(run))
    assert methods(run) == ["base", "uce"], logs(run)
    assert launch_states(run) == [("slurm array", array, "done"), ("slurm leaderboard", leaderboard, "done")]
    here = efface("run", tmp_path / "campaign.yaml", "--out", tmp_path / "here", "--workers", "0")
    assert here.code == 0, here
    assert results(run) == results(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.parametrize("style", ["shared", "exclusive"])
def test_a_ray_on_one_node(style: str, slurm: SlurmCluster, submit: Submit, efface: RunEfface, tmp_path: Path) -> None:
    """Its token can be read by its owner alone and is gone in the end, and nothing listens beyond loopback."""
    run, (number,) = submit(style, images=4)
    slurm.wait(lambda: len(finished_shards(run)) > 2, 120, lambda: logs(run))
    token_file = run / "launch" / f"token-{number}"
    token = token_file.read_text()
    assert len(token) == 64 and token_file.stat().st_mode & 0o777 == 0o600
    lines = slurm.on("n1", "ss", "-ltnpH").splitlines()
    rays = [line for line in lines if not re.search(r'"(srun|slurm\w+)"', line)]  # SLURM's own are SLURM's to protect
    assert len(rays) > 5
    loopback = ("127.0.0.1:", "[::ffff:127.0.0.1]:", "[::1]:")
    assert [line for line in rays if not line.split()[3].startswith(loopback)] == []
    slurm.wait(slurm.empty, 120, lambda: logs(run))
    assert methods(run) == ["base", "uce"], logs(run)
    assert not [path for path in run.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    here = efface("run", tmp_path / "campaign.yaml", "--out", tmp_path / "here", "--workers", "0")
    assert here.code == 0 and results(run) == results(tmp_path / "here")


@pytest.mark.slow
def test_two_rays_share_a_node(slurm: SlurmCluster, submit: Submit) -> None:
    jobs = [submit("shared", images=40, name=name) for name in ("first", "second")]
    both = "\n".join
    slurm.wait(lambda: all(finished_shards(run) for run, _ in jobs), 300, lambda: both(logs(run) for run, _ in jobs))
    assert {slurm.job(number)["NodeList"] for _, (number,) in jobs} == {"n1"}
    assert {slurm.job(number)["JobState"] for _, (number,) in jobs} == {"RUNNING"}
    slurm.wait(slurm.empty, 400, lambda: both(logs(run) for run, _ in jobs))
    assert results(jobs[0][0]) == results(jobs[1][0]) and methods(jobs[0][0]) == ["base", "uce"]


@pytest.mark.slow
@pytest.mark.parametrize("style", ["shared", "exclusive"])
def test_a_ray_over_two_nodes(style: str, slurm: SlurmCluster, submit: Submit) -> None:
    run, _ = submit(style, listen="nodes", nodes=2, images=10)
    slurm.wait(slurm.empty, 400, lambda: logs(run))
    assert methods(run) == ["base", "uce"], logs(run)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_out_of_time_a_job_saves_and_goes_on(style: str, slurm: SlurmCluster, submit: Submit) -> None:
    run, numbers = submit(style, images=130, time="2", warn_seconds=30, parts=1)
    slurm.wait(lambda: slurm.restarts(numbers[0]) and finished_shards(run), 400, lambda: logs(run))
    before = finished_shards(run)
    assert not (run / "leaderboard.csv").exists()
    slurm.wait(slurm.empty, 900, lambda: logs(run))
    assert methods(run) == ["base", "uce"], logs(run)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert logs(run).count("efface: interrupted, saved, and queued again") == slurm.restarts(numbers[0])
    assert "efface: stopped" in logs(run)  # unless it had not begun yet, or nothing but scores was left


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_a_job_that_gives_way_to_another_goes_on_after_it(
    style: str, slurm: SlurmCluster, submit: Submit, tmp_path: Path
) -> None:
    run, numbers = submit(style, images=40, cpus=4, parts=1)
    slurm.wait(lambda: len(finished_shards(run)) > 2, 120, lambda: logs(run))
    node = slurm.job(numbers[0])["NodeList"]
    urgent = slurm.run_command("sbatch", "--parsable", "--partition=urgent", "--exclusive", f"--nodelist={node}",
                       f"--output={tmp_path}/urgent.log", "--wrap=sleep 5")  # fmt: skip
    slurm.run_command("scontrol", "update", f"nodename={other(node)}", "state=drain", "reason=test")
    slurm.wait(lambda: slurm.job(urgent)["JobState"] == "COMPLETED", 120, lambda: logs(run))
    assert slurm.restarts(numbers[0]) == 1
    before = finished_shards(run)
    slurm.wait(slurm.empty, 300, lambda: logs(run))
    assert methods(run) == ["base", "uce"], logs(run)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_a_job_whose_node_is_lost_goes_on_elsewhere(style: str, slurm: SlurmCluster, submit: Submit) -> None:
    run, numbers = submit(style, images=40, parts=1)
    slurm.wait(lambda: len(finished_shards(run)) > 2, 120, lambda: logs(run))
    node = slurm.job(numbers[0])["NodeList"]
    slurm.crash_node(node)
    slurm.wait(slurm.empty, 300, lambda: logs(run))
    assert methods(run) == ["base", "uce"], logs(run)
    assert (slurm.restarts(numbers[0]), slurm.job(numbers[0])["NodeList"]) == (1, other(node))
    slurm.restore_node(node)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_a_job_that_is_cancelled_saves_and_stays_so(style: str, slurm: SlurmCluster, submit: Submit) -> None:
    run, numbers = submit(style, images=100, parts=1)
    slurm.wait(lambda: len(finished_shards(run)) > 2, 120, lambda: logs(run))
    slurm.run_command("scancel", *numbers)
    slurm.wait(slurm.empty, 60, lambda: logs(run))
    assert {state for _, _, state in launch_states(run)} == {"stopped"}
    assert "queued again" not in logs(run)
    assert not (run / "leaderboard.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["efface cancel", "scancel"])
def test_when_the_parts_are_stopped_no_more_parts_and_no_leaderboard_begin(
    by: str, slurm: SlurmCluster, submit: Submit, efface: RunEfface, tmp_path: Path
) -> None:
    run, (array, _) = submit("array", images=100, parts=2, cpus=4, gpus=2, partition="main")
    slurm.wait(lambda: finished_shards(run), 120, lambda: logs(run))
    if by == "scancel":
        slurm.run_command("scancel", array)
    else:
        assert efface("cancel", run).code == 0
    slurm.wait(slurm.empty, 60, lambda: logs(run))
    assert "the campaign was stopped" in (run / "launch" / "leaderboard.log").read_text()
    assert not (run / "leaderboard.csv").exists()
    efface("submit", "slurm", tmp_path / "campaign.yaml", "--cluster", tmp_path / "cluster.yaml", "--out", run)
    slurm.wait(slurm.empty, 300, lambda: logs(run))
    assert methods(run) == ["base", "uce"], logs(run)


def other(node: str) -> str:
    return {"n1": "n2", "n2": "n1"}[node]
