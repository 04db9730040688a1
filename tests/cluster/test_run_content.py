"""What a report reads from a run folder: all that is done, and in a sentence what is missing, failed or damaged."""

import json
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pytest

from efface.cluster.run import reopen_run
from efface.cluster.run_content import read_run
from efface.cluster.tasks.judging import VERDICTS
from efface.errors import UserError
from efface.eval.image_table import read_table


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_finished_run_gives_the_scores_that_it_wrote(run: Path) -> None:
    before = files(run)
    content = read_run(run)
    written = json.loads((run / "scores.json").read_text())
    assert content.problems == ()
    assert set(content.scores) == {"uce", "esd"}
    for method, scores in content.scores.items():
        assert scores.err_mean == written["methods"][method]["err_mean"]
    assert content.table.sort_by("prompt_id").num_rows == read_table(run / "table.parquet").num_rows
    assert {sha for sha, _ in content.images()} == set(content.table["image_sha256"].to_pylist())
    assert {model.method for model in content.models} == {"uce", "esd"}
    assert [len(model.losses) for model in content.models if model.method == "esd"] == [2]
    assert files(run) == before


def test_a_model_that_is_not_judged_to_the_end_is_left_out_and_what_is_missing_is_said(run: Path) -> None:
    opened = reopen_run(run)
    model = next(model for model in opened.plan.jobs if model.method == "esd")
    opened.folder.record_file(opened.plan.shards[model.id][0]).unlink()
    content = read_run(run)
    assert set(content.scores) == {"uce"}
    assert model.id not in content.table["model_id"].to_pylist()
    assert any("judging" in problem and "5 are left" in problem for problem in content.problems)


def test_a_damaged_table_is_named_and_not_averaged_over(run: Path) -> None:
    opened = reopen_run(run)
    model = next(model for model in opened.plan.jobs if model.method == "esd")
    path = opened.folder.output(opened.plan.shards[model.id][0], VERDICTS)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    content = read_run(run)
    assert set(content.scores) == {"uce"}
    assert any(str(path) in problem for problem in content.problems)


def test_a_model_that_was_given_up_is_named_with_its_reason(run: Path) -> None:
    opened = reopen_run(run)
    model = next(model for model in opened.plan.jobs if model.method == "esd")
    shutil.rmtree(opened.folder.root / "evaluations" / model.folder)
    opened.folder.fail(model, "training", "the loss is not a number")
    content = read_run(run)
    assert any(model.folder in problem and "the loss is not a number" in problem for problem in content.problems)


def test_a_run_whose_campaign_cannot_be_planned_here_is_shown_as_far_as_its_table_goes(run: Path) -> None:
    campaign = run / "campaign.yaml"
    campaign.write_text(campaign.read_text().replace("base: ", "base: /nowhere"))
    content = read_run(run)
    assert set(content.scores) == {"uce", "esd"}
    assert any("not known what is missing" in problem for problem in content.problems)


def test_the_answers_of_the_base_are_there_once(run: Path) -> None:
    table = read_run(run).table
    of_base = table.filter(pc.equal(table["method"], "base"))
    assert of_base.num_rows == table.num_rows // 3


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        read_run(tmp_path)
