"""A campaign on a base of the hub that this machine does not have: it can be planned, and not run."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.spec import read_campaign
from efface.cluster.run import open_run
from efface.errors import UserError
from efface.launch.commands import plan as command


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Nothing in the hub's cache and no network; the answer tells, request by request, whether it was the network's."""
    online: list[bool] = []

    def unreachable(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        online.append(not local_files_only)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    return online


def test_the_ablation_is_planned_without_any_weights(no_hub: list[bool]) -> None:
    plan = plan_campaign(read_campaign("esd-ablation"), fetch=False)
    labels = {job.label for job in plan.jobs}
    assert (len(plan.jobs), len(labels), len(plan.targets)) == (20 * 10 * 3, 10, 20)
    # Of each model: 5 direct and 5 indirect prompts of the target, 5 of each other concept, some of 3 neighbours.
    images = {sum(len(shard.eval_requests) for shard in plan.shards[job.id]) for job in plan.jobs}
    assert all(400 <= count <= 500 for count in images)
    assert plan.provisional and not any(no_hub)


def test_a_base_that_is_here_has_its_own_id(plan: Any) -> None:
    assert not plan().provisional


def test_the_plan_says_that_its_ids_are_provisional(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, campaign_file: Any
) -> None:
    options = command.PlanOptions(campaign="esd-ablation", out=str(tmp_path), overrides=["seeds=[0]"])
    command.show(command.run(options))
    assert "base 'sd-v1-4' is unknown until fetched: ids are provisional" in capsys.readouterr().out
    command.show(command.run(command.PlanOptions(campaign=str(campaign_file()), out=str(tmp_path))))
    assert "provisional" not in capsys.readouterr().out


def test_a_run_is_refused_in_the_words_of_the_base(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^CompVis/stable-diffusion-v1-4: .*not to be had \(no network\)$"):
        open_run(read_campaign("esd-ablation"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_missing_is_no_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    base = tmp_path / "base.yaml"
    base.write_text(f"name: mine\nsource: {tmp_path}/none.ckpt\nconcepts: genmu-2025\n")
    with pytest.raises(UserError, match=r"none\.ckpt: no such file or folder, and not a hub id"):
        plan_campaign(read_campaign("esd-ablation", [f"base={base}"]), fetch=False)
