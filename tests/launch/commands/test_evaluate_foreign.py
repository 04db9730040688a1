"""`efface evaluate` of a model that somebody else edited: judged like ours, beside the base."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from command import RunEfface
from safetensors.torch import save_file

from efface.cluster.campaign.planner import plan_deltas
from efface.cluster.campaign.spec import DeltaEvaluation
from efface.config_files import read_config
from efface.models.base import load_base
from efface.models.delta import Delta

NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"


def state(base: str) -> dict[str, torch.Tensor]:
    return {NAME.removeprefix("unet."): load_base(base).originals()[NAME] + 1.0}


@pytest.mark.parametrize("label", ["theirs", "esd"])
def test_a_state_dict_is_judged_under_its_label(efface: RunEfface, base: str, tmp_path: Path, label: str) -> None:
    """Also where a method of ours has the same name."""
    path = tmp_path / "theirs.pt"
    torch.save(state(base), path)
    judged = efface(
        *("evaluate", path, "--concept", "cat", "--label", label, "--base", base),
        *("--images-per-prompt", 1, "--out", tmp_path / "run", "--workers", 0, "--device", "cpu"),
    )
    assert judged.code == 0, judged.err
    evaluation = read_config(DeltaEvaluation, tmp_path / "run" / "evaluation.yaml")
    (delta,) = (tmp_path / "run" / "jobs").rglob("*.safetensors")
    (training,) = plan_deltas([(delta, Delta.load(delta))], evaluation).trainings
    assert training.counted_cost(Mock()) is None
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert list(scores["methods"]) == [label]
    assert scores["weight_change"][label]["all"]["changed_tensors"] == 1


def test_a_file_that_is_no_delta_says_how_others_models_are_judged(
    efface: RunEfface, base: str, tmp_path: Path
) -> None:
    save_file(state(base), tmp_path / "theirs.safetensors")
    message = efface("evaluate", tmp_path / "theirs.safetensors", "--base", base).error_message
    assert "not a delta written by efface" in message and "--concept" in message


def test_a_label_is_not_that_of_the_base(efface: RunEfface, base: str, tmp_path: Path) -> None:
    torch.save(state(base), tmp_path / "theirs.pt")
    given = ("--concept", "cat", "--label", "base", "--base", base, "--out", tmp_path / "run")
    message = efface("evaluate", tmp_path / "theirs.pt", *given).error_message
    assert "label 'base'" in message and not (tmp_path / "run").exists()
    nameless = efface("evaluate", tmp_path / "theirs.pt", *given[:3], " ", *given[4:]).error_message
    assert "label '': should be a name" in nameless


def test_an_unknown_concept_is_refused_before_any_work(efface: RunEfface, base: str, tmp_path: Path) -> None:
    torch.save(state(base), tmp_path / "theirs.pt")
    message = efface("evaluate", tmp_path / "theirs.pt", "--concept", "cta", "--base", base).error_message
    assert "did you mean" in message
