"""The files for Ray's cluster launcher: Ray's own schema takes them, and they keep the rules of a safe cluster."""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

DEPLOY = Path(__file__).resolve().parents[3] / "cluster" / "deploy"


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


def test_the_image_is_made_of_the_package_and_nothing_else() -> None:
    """What Docker would send of a checkout: every package room, and what `pip install` reads."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    rooms = {
        name for name in os.listdir(DEPLOY.parents[1] / "efface") if (DEPLOY.parents[1] / "efface" / name).is_symlink()
    }
    assert sent == rooms | {"efface", "LICENSE", "README.md", "constraints.txt", "pyproject.toml", "setup.py"}
    assert "*" in ignored
