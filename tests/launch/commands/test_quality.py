"""`efface quality`: numbers beside ERR, from the images of a run."""

import json
from pathlib import Path

import pytest
from command import RunEfface


def test_each_method_is_compared_with_the_base_on_the_same_images(
    efface: RunEfface, finished: Path, campaign_inputs: Path
) -> None:
    pytest.importorskip("torchmetrics")
    command = ["quality", finished, "--clip", "", "--features", campaign_inputs / "judge"]
    result = efface(*command, "--json")
    assert result.code == 0, result
    base, uce = json.loads(result.out)["rows"]
    assert (base["method"], base["fid"], base["kid"], base["clip_score"]) == ("base", None, None, None)
    assert uce["method"] == "uce" and uce["images"] == base["images"] > 2 and uce["fid"] >= 0
    assert "by features of" in efface(*command).out


def test_a_folder_that_is_no_run_is_refused(efface: RunEfface, tmp_path: Path) -> None:
    assert "is not a run folder" in efface("quality", tmp_path).error_message
