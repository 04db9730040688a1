"""A method of somebody else's package, installed as one file with an entry point: everything works as with ours."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import RunEfface
from tiny_campaign import campaign_dict, write_yaml

from efface.launch.doctor.gpu_memory import estimate_gpu_memory
from efface.train.method import METHODS

EXAMPLE = Path(__file__).parents[1] / "examples" / "method.py"
NAME = "anchor-distillation"
CONFIG = {"steps": 2, "learning_rate": 1e-3, "rollout_steps": 3}


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example as pip would install it: the module, and the metadata that holds its entry point."""
    site = tmp_path / "site-packages"
    metadata = site / "anchor_distillation-1.0.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(EXAMPLE, site / "anchor_distillation.py")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: anchor-distillation\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[efface.methods]\n{NAME} = anchor_distillation\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))  # of workers
    yield
    METHODS._items.pop(NAME, None)
    sys.modules.pop("anchor_distillation", None)


@pytest.fixture
def campaign(campaign_inputs: Path, tmp_path: Path) -> Callable[..., str]:
    def write(**changes: Any) -> str:
        methods = [{"method": NAME, "config": CONFIG}]
        return write_yaml(tmp_path / "campaign.yaml", campaign_dict(campaign_inputs, methods=methods, **changes))

    return write


def test_it_is_one_small_file() -> None:
    lines = EXAMPLE.read_text().partition(f'@register("{NAME}")')[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 35


def test_it_is_listed_with_its_fields(efface: RunEfface) -> None:
    (found,) = [method for method in json.loads(efface("methods", "--json").out) if method["name"] == NAME]
    assert found["summary"] == "Gives a concept's prompt the noise predictions of its anchor's."
    assert {"name": "rollout_steps", "type": "integer >= 1", "default": 20}.items() <= found["fields"][-1].items()


def test_it_is_planned_with_hours(efface: RunEfface, campaign: Callable[..., str], tmp_path: Path) -> None:
    rates = {"device": "cpu", "seconds_per_image": {"tiny": 1.0}, "tflops": {"fp32": 1e-6}}
    result = efface("plan", campaign(), "--rates", write_yaml(tmp_path / "rates.yaml", rates), "--json")
    assert result.code == 0 and json.loads(result.out)["estimate"]["by_kind"]["training"][NAME] > 0


def test_doctor_estimates_its_memory(campaign: Callable[..., str]) -> None:
    from efface.cluster.campaign.planner import plan_campaign
    from efface.cluster.campaign.spec import read_campaign

    parsed = read_campaign(campaign())
    found = estimate_gpu_memory(parsed, plan_campaign(parsed))
    assert found.training[NAME] > found.judges > 0


def test_it_is_trained_saved_and_evaluated(efface: RunEfface, campaign: Callable[..., str], tmp_path: Path) -> None:
    result = efface("run", campaign(), "--out", tmp_path / "run")
    assert result.code == 0, result.err
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["methods"][NAME]["base"] is not None
    (delta,) = (tmp_path / "run").rglob(f"{NAME}*/*.safetensors")
    assert delta.stat().st_size > 0
