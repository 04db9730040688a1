"""Campaigns on a real Ray cluster: over HTTP, with a token, and past the cluster's death."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Efface
from ray_head import RayHead
from tiny_campaign import UCE

Campaign = Callable[..., Path]
ONE_IMAGE = {"images_per_prompt": 1, "prompts_per_concept": {"adjacent": 1, "retain": 1}}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    head = RayHead(tmp_path_factory.mktemp("head"))
    head.start()
    yield head
    head.kill()


@pytest.fixture
def cluster(head: RayHead, profile: Callable[..., str]) -> str:
    return profile(ray={"address": head.address, "token_file": str(head.token_file)})


def test_a_campaign(efface: Efface, head: RayHead, cluster: str, campaign_file: Campaign, tmp_path: Path) -> None:
    asked = [campaign_file(methods=[UCE], evaluation=ONE_IMAGE), "--cluster", cluster, "--out", tmp_path / "run"]
    said = efface("submit", "ray", *asked, "--follow")
    assert said.code == 0, said
    print(said.out)
    with (tmp_path / "run" / "leaderboard.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["base", "uce"]
    assert all(where.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:", "[::1]:")) for where in head.listens())
    assert head.listens()
