"""The pages on launching: each command in a block marked `sh` is run, in the page's order, with the page's profile.

What needs a cloud, Docker or Kubernetes stands in blocks marked `console` and is not run here; of these, Ray's head is
started with ports that are free.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray_head import RayHead
from slurm_cluster import SlurmCluster
from tiny_campaign import UCE

ROOT = Path(__file__).resolve().parents[3]
PAGES = ROOT / "docs" / "launch"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ONE_IMAGE = {"images_per_prompt": 1, "prompts_per_concept": {"adjacent": 1, "retain": 1}}


def blocks(page: str, kind: str) -> list[str]:
    return [text for name, text in FENCED.findall((PAGES / page).read_text()) if name == kind]


class DocsReader:
    """Somebody who follows a page in a folder of their own, with a campaign of theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "HOME": str(folder)}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def writes_the_profile(self, page: str, old: str = "", new: str = "") -> None:
        (text,) = blocks(page, "yaml")
        (self.folder / "cluster.yaml").write_text(text.replace(old, new))

    def types(self, commands: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (commands, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def reader(tmp_path: Path, campaign_file: Callable[..., Path]) -> DocsReader:
    campaign_file(methods=[UCE], evaluation=ONE_IMAGE)
    return DocsReader(tmp_path)


def test_kubernetes(reader: DocsReader) -> None:
    reader.writes_the_profile("kubernetes.md")
    for commands in blocks("kubernetes.md", "sh"):
        reader.types(commands)
    assert "kind: RayJob" in (reader.folder / "rayjob.yaml").read_text()


@pytest.mark.slow
def test_slurm(reader: DocsReader, slurm: SlurmCluster) -> None:
    reader.environment.update(slurm.environment, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    reader.writes_the_profile("slurm.md")
    for commands in blocks("slurm.md", "sh"):
        reader.types(commands)
    slurm.wait(slurm.empty, 300)
    assert (reader.folder / "runs" / "mine" / "leaderboard.csv").is_file()


@pytest.fixture
def head(reader: DocsReader) -> Iterator[RayHead]:
    """The head that the page has its reader start, with ports of its own."""
    generate, start = blocks("ray.md", "console")[0].splitlines()
    reader.types(generate)
    head = RayHead(reader.folder / ".ray", reader.folder / ".ray" / "auth_token", start)
    head.install_efface()
    head.start()
    yield head
    head.kill()


@pytest.mark.slow
def test_ray(reader: DocsReader, head: RayHead) -> None:
    reader.writes_the_profile("ray.md", "http://127.0.0.1:8265", head.address)
    reader.environment["RAY_API_SERVER_ADDRESS"] = head.address  # for Ray's own command; the page takes the default
    for commands in blocks("ray.md", "sh"):
        reader.types(commands)
    for run in ("mine", "plain"):
        assert (reader.folder / "runs" / run / "leaderboard.csv").is_file()
