"""The files for Ray's cluster launcher: Ray's own schema takes them, and they keep the rules of a safe cluster."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "cluster" / "deploy"


@pytest.fixture(params=["aws", "gcp"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / f"{request.param}.yaml").read_text()))


def test_rays_launcher_takes_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config | {"head_node_typ": "head"}))


def test_the_head_does_no_work_and_the_workers_are_spot_machines(config: dict[str, Any]) -> None:
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    workers = kinds["gpu"]["node_config"]
    market = workers.get("InstanceMarketOptions", {}).get("MarketType")
    assert market == "spot" or workers["scheduling"]["provisioningModel"] == "SPOT"
    assert kinds["gpu"]["min_workers"] == kinds["gpu"]["max_workers"] == config["max_workers"]


def test_every_node_wants_the_token_and_the_dashboard_stays_on_the_head(config: dict[str, Any]) -> None:
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in config[key] if "ray start" in line]
        assert "RAY_AUTH_MODE=token ray start" in start and "--dashboard-host" not in start


def sent() -> set[str]:
    """What of a checkout Docker sends: all that the ignore file takes back from its first line, `*`."""
    first, *others = [line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] != "#"]
    assert first == "*"
    return {line.removeprefix("!") for line in others if line.startswith("!")}


def test_the_image_is_made_of_the_package_and_nothing_else() -> None:
    """What Docker would send of a checkout: every package, and what `pip install` reads."""
    packages = {name for name in os.listdir(ROOT / "efface") if (ROOT / "efface" / name).is_symlink()}
    assert sent() == packages | {"efface", "LICENSE", "README.md", "constraints.txt", "pyproject.toml", "setup.py"}


def test_the_images_package_can_be_built_of_that(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", *sent()], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        (tmp_path / "efface" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "efface" / name, follow_symlinks=False)
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*wheel, f"--wheel-dir={tmp_path}", str(tmp_path / "efface")], check=True)
    (made,) = tmp_path.glob("efface-*.whl")
    assert {"efface/launch/cli.py", "efface/miniature/judge/model.safetensors"} <= {*ZipFile(made).namelist()}


def test_the_image_has_the_ray_that_is_pinned() -> None:
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"ARG RAY={pinned}\n" in (DEPLOY / "Dockerfile").read_text()
