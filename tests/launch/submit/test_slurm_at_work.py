"""Campaigns on a real SLURM of two nodes: from `efface submit slurm` to the leaderboard, whatever happens."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Efface
from slurm_cluster import SlurmCluster
from tiny_campaign import UCE

Profile = Callable[..., str]
Campaign = Callable[..., Path]


def logs(run: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted((run / "launch").glob("*.log")))


def methods(run: Path) -> list[str]:
    with (run / "leaderboard.csv").open() as file:
        return [row["method"] for row in csv.DictReader(file)]


@pytest.fixture
def submit(
    slurm: SlurmCluster, efface: Efface, profile: Profile, campaign_file: Campaign, tmp_path: Path
) -> Callable[..., tuple[Path, list[str]]]:
    """`submit(style, images=…, listen=…, **slurm section)`: the run folder, and the numbers of the jobs queued."""

    def queue(style: str, images: int = 1, listen: str = "loopback", **section: Any) -> tuple[Path, list[str]]:
        evaluation = {"images_per_prompt": images, "prompts_per_concept": {"adjacent": 1, "retain": 1}, "shard_size": 4}
        campaign = campaign_file(methods=[UCE], evaluation=evaluation)
        run = tmp_path / "run"
        cluster = profile(listen=listen, slurm={"style": style, **section})
        said = efface("submit", "slurm", campaign, "--cluster", cluster, "--out", run)
        assert said.code == 0, said
        numbers = [line.split()[-1] for line in said.out.splitlines() if line.startswith("submitted: slurm")]
        assert numbers, said
        return run, numbers

    return queue


Submit = Callable[..., tuple[Path, list[str]]]


@pytest.mark.slow
@pytest.mark.parametrize("style", ["shared", "exclusive"])
def test_a_ray_on_one_node(style: str, slurm: SlurmCluster, submit: Submit) -> None:
    run, _ = submit(style)
    slurm.wait(slurm.empty, 120, lambda: logs(run))
    assert methods(run) == ["base", "uce"], logs(run)
    assert not list((run / "launch").glob("token-*"))


@pytest.mark.slow
@pytest.mark.parametrize("style", ["shared", "exclusive"])
def test_a_ray_over_two_nodes(style: str, slurm: SlurmCluster, submit: Submit) -> None:
    run, _ = submit(style, listen="nodes", nodes=2, images=10)
    slurm.wait(slurm.empty, 180, lambda: logs(run))
    assert methods(run) == ["base", "uce"], logs(run)
    print(logs(run))
