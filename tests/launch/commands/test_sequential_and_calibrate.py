"""Judging in looks until a question is answered, and by two recipes, on the tiny world."""

import json
from pathlib import Path

import pyarrow.compute as pc
import pytest
import yaml
from command import RunEfface

from efface.cluster.run_content import read_run
from efface.concepts.prompts import AXES
from efface.eval.judging.image_table import read_table
from efface.eval.scores.scoring import score_table
from efface.models.recipe import load_recipe


@pytest.fixture
def delta(finished: Path) -> Path:
    (found,) = finished.glob("jobs/uce-*/delta.safetensors")
    return found


def rows(run: Path) -> set[tuple[object, ...]]:
    key = ("method", "axis", "concept", "asked_concept", "prompt", "seed", "present", "image_sha256")
    return {tuple(row[name] for name in key) for row in read_table(run / "table.parquet").to_pylist()}


def test_an_axis_that_is_settled_is_drawn_no_more_and_the_rest_to_the_end(
    efface: RunEfface, base: str, finished: Path, delta: Path, tmp_path: Path
) -> None:
    options = ["--base", base, "--images-per-prompt", 2, "--workers", 0]
    assert efface("evaluate", delta, *options, "--out", tmp_path / "whole").code == 0
    whole = rows(tmp_path / "whole")
    table = read_table(tmp_path / "whole" / "table.parquet")
    first = score_table(table.filter(pc.equal(table["seed"], 0)), method="uce").axes
    # an interval that does not begin at 0, or end at 1, answers at once; the axis retain is not asked about
    expected = {axis: "above" if first[axis] else "below" for axis in AXES[:-1]}
    until = [part for axis, side in expected.items() for part in ("--until", f"{axis}={int(side == 'below')}")]
    found = []
    for _ in range(2):  # the second time everything is there
        assert efface("evaluate", delta, *options, *until, "--out", tmp_path / "run").code == 0
        found.append(json.loads((tmp_path / "run" / "sequential.json").read_text()))
    assert found[0] == found[1]
    assert found[0]["looks"] == [1, 2] and found[0]["level"] == pytest.approx(0.975)
    assert found[0]["images_per_prompt"] == {**dict.fromkeys(expected, 1), "retain": 2}
    assert {axis: found[0]["answers"][axis]["uce"]["verdict"] for axis in expected} == expected
    assert rows(tmp_path / "run") == {row for row in whole if row[5] == 0 or row[1] == "retain"}
    reported = read_run(tmp_path / "run")  # for whom images of settled axes are not missing
    assert reported.table.num_rows == len(rows(tmp_path / "run"))
    assert not [problem for problem in reported.problems if "are left" in problem]


def test_a_recipe_shifts_scores_by_what_the_two_runs_differ(
    efface: RunEfface, base: str, campaign_inputs: Path, delta: Path, tmp_path: Path
) -> None:
    recipe = yaml.safe_load((campaign_inputs / "recipe.yaml").read_text())
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**recipe, "name": "other", "steps": 5, "scheduler": "dpm++"}))
    out = tmp_path / "out"
    options = ["--base", base, "--images-per-prompt", 1, "--workers", 0, "--out", out]
    result = efface("calibrate", tmp_path / "other.yaml", delta, *options)
    assert result.code == 0 and "shift, 95 % interval" in result.out
    found = json.loads((out / "calibration.json").read_text())
    assert (found["against"], found["recipe"], set(found["methods"])) == ("tiny", "other", {"base", "uce"})
    before, after = (
        json.loads((out / load_recipe(path).id / "scores.json").read_text())["methods"]["uce"]["axes"]
        for path in (campaign_inputs / "recipe.yaml", tmp_path / "other.yaml")
    )
    shift = found["methods"]["uce"]["shift"]
    for axis in AXES:
        assert shift["axes"][axis]["difference"] == pytest.approx(after[axis] - before[axis])
        assert shift["axes"][axis]["low"] <= shift["axes"][axis]["difference"] <= shift["axes"][axis]["high"]
    again = efface("calibrate", campaign_inputs / "recipe.yaml", delta, *options)
    assert again.code == 2 and "is the one to compare with" in again.err
