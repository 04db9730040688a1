"""A run whose model draws images that are no evidence: seen in log, status and leaderboard, never a success."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import RunEfface
from tiny_campaign import UCE

from efface.eval.judging import evaluate
from efface.eval.judging.image_table import read_table
from efface.eval.scores import scoring as score
from efface.models.sampling.sampler import sample

CampaignFile = Callable[..., Path]
NOTE = "3 images are no evidence (2 not finite, 1 blanked)"


@pytest.fixture(autouse=True)
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an edited model, the first image of a shard is not finite; of the last shard, of 4 images, it is black."""

    def draw(
        base: Any, recipe: Any, requests: Any, on_batch: Any, on_not_finite: Any, cost: Any, on_images: Any
    ) -> np.ndarray:
        images = sample(base, recipe, requests, on_batch, cost=cost)
        if base.applied is not None and len(requests) == 5:
            on_not_finite(0)
        elif base.applied is not None:
            images[0] = 0
        on_images(images)
        return images

    monkeypatch.setattr(evaluate, "sample", draw)


def run(efface: RunEfface, campaign_file: CampaignFile, folder: Path) -> str:
    result = efface("run", campaign_file(methods=[UCE]), "--out", folder, "--workers", 0)
    assert result.code == 0
    return result.out


def test_they_are_reported_while_it_runs_in_its_status_and_in_its_log(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    out = run(efface, campaign_file, folder)
    assert "judging uce: cat, shard 0: 1 image is no evidence (1 not finite)" in out
    assert f"uce: {NOTE}" in out
    (job,) = [path.name for path in (folder / "jobs").iterdir()]
    assert f"  {job}: {NOTE}\n" in efface("status", folder).out
    assert json.loads(efface("status", folder, "--json").out)["broken"] == {job: {"not finite": 2, "blanked": 1}}
    for arguments in ([], [job]):
        assert "; 1 image is no evidence (1 blanked)" in efface("logs", folder, *arguments).out
    records = [json.loads(path.read_text()) for path in sorted((folder / "evaluations" / job).glob("*.json"))]
    assert [record["facts"]["broken"] for record in records] == [{"not finite": 1}, {"not finite": 1}, {"blanked": 1}]
    assert json.loads((folder / "scores.json").read_text())["broken"] == {"uce": {"not finite": 2, "blanked": 1}}


def test_a_method_with_too_many_of_them_has_no_score(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    out = run(efface, campaign_file, tmp_path / "run")
    assert re.search(
        r"not scored: method 'uce': concept 'cat', axis \w+: 1 of \d verdicts .*; 1 image is no evidence", out
    )
    assert set(json.loads((tmp_path / "run" / "scores.json").read_text())["methods"]) == {"base"}
    rows = [row for row in read_table(tmp_path / "run" / "table.parquet").to_pylist() if row["image_error"]]
    assert {(row["method"], row["present"], row["score"]) for row in rows} == {("uce", None, None)}
    assert "1 image is no evidence" in efface("score", tmp_path / "run").error_message


def test_below_the_limit_they_stand_in_the_leaderboard(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "MAX_INVALID", 0.9)
    run(efface, campaign_file, tmp_path / "run")
    lines = list(csv.DictReader((tmp_path / "run" / "leaderboard.csv").open()))
    assert [(line["method"], line["broken"], line["unread"]) for line in lines] == [
        ("base", "0", "0"),
        ("uce", "3", "0"),
    ]
    assert next(line for line in efface("score", tmp_path / "run").out.splitlines() if "uce" in line).endswith(" 3 ")


def test_a_run_without_any_says_nothing_of_them(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "sample", sample)
    assert "no evidence" not in run(efface, campaign_file, tmp_path / "run")
    assert "broken" not in json.loads((tmp_path / "run" / "scores.json").read_text())
    assert json.loads(efface("status", tmp_path / "run", "--json").out)["broken"] == {}
