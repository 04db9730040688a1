"""What a report reads from a run folder: all that is done, and in a sentence what is missing, failed or damaged."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import yaml
from rich.console import Console
from tiny_campaign import LIMITS, UCE

from efface.cluster.campaign.spec import Campaign, DeltaEvaluation
from efface.cluster.collect_results import collect_results
from efface.cluster.run import execute, open_evaluation, open_run, reopen_run
from efface.cluster.run_content import read_run
from efface.cluster.storage.records import parse_record
from efface.cluster.tasks.judging import VERDICTS
from efface.config_files import parse
from efface.errors import UserError
from efface.eval.judging.image_table import read_table, write_table
from efface.models.delta import Delta


@pytest.fixture(scope="module")
def evaluated(campaign_inputs: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished evaluation of the campaign's deltas, three shards a model. Not to be changed."""
    limits = {"images_per_prompt": 2, "prompts_per_concept": LIMITS, "shard_size": 5}
    requested = parse(DeltaEvaluation, {"base": str(campaign_inputs / "base.yaml"), "evaluation": limits}, "requested")
    deltas = [(path, Delta.load(path)) for path in sorted(finished.glob("jobs/*/delta.safetensors"))]
    root = tmp_path_factory.mktemp("evaluated") / "run"
    execute(open_evaluation(deltas, requested, root), 0, None, Console(file=io.StringIO()))
    return root


@pytest.fixture
def evaluation(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "evaluation"))


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
    assert content.provenance["the command that makes it again"] == "efface run campaign.yaml --out again"
    assert f"torch {torch.__version__.partition('+')[0]}" in content.provenance["versions"]
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


def a_shard_of(evaluation: Path, method: str) -> Path:
    """The record of one."""
    return next(path for path in sorted(evaluation.glob("evaluations/*/*.json")) if path.parent.name.startswith(method))


def test_an_evaluation_of_deltas_gives_the_scores_that_it_wrote(evaluation: Path) -> None:
    content, written = read_run(evaluation), json.loads((evaluation / "scores.json").read_text())
    assert content.problems == tuple(written.get("warnings", ())) and content.name == "evaluation"
    assert {m: s.err_mean for m, s in content.scores.items()} == {
        m: s["err_mean"] for m, s in written["methods"].items()
    }


def test_a_model_of_an_evaluation_that_is_half_judged_is_left_out(evaluation: Path) -> None:
    """There is no table yet, as while it is at work."""
    (evaluation / "table.parquet").unlink()
    a_shard_of(evaluation, "esd").unlink()
    content = read_run(evaluation)
    assert set(content.scores) == {"uce"}
    assert any("judging: 37 of 42 images are done, 5 are left" in problem for problem in content.problems)


def cannot_be_planned(root: Path) -> None:
    requested = root / "evaluation.yaml"
    requested.write_text(requested.read_text().replace("base: ", "base: /nowhere"))


def test_without_a_plan_a_half_judged_model_is_known_by_the_runs_own_table(evaluation: Path) -> None:
    cannot_be_planned(evaluation)
    a_shard_of(evaluation, "esd").unlink()
    content = read_run(evaluation)
    assert set(content.scores) == {"uce"}
    assert any("its verdicts are not those of table.parquet" in problem for problem in content.problems)


@pytest.mark.parametrize("bytes_kept", [0, 2000, None])
def test_without_plan_and_table_it_is_said_that_scores_may_be_of_some_images_alone(
    evaluation: Path, bytes_kept: int | None
) -> None:
    """Nothing at all, the beginning of a file, no file."""
    cannot_be_planned(evaluation)
    table = evaluation / "table.parquet"
    whole = table.read_bytes()
    table.unlink()
    if bytes_kept is not None:
        table.write_bytes(whole[:bytes_kept])
    content = read_run(evaluation)
    assert set(content.scores) == {"uce", "esd"}
    (said,) = (problem for problem in content.problems if "may be of some of their images alone" in problem)
    assert ("no table.parquet yet" if bytes_kept is None else str(table)) in said


def test_a_later_look_that_is_half_drawn_is_not_mixed_with_those_before(evaluation: Path) -> None:
    """What a plan does not ask for is no evidence, and nothing of it is missing."""
    before, path = read_run(evaluation), a_shard_of(evaluation, "esd")
    record = parse_record(json.loads(path.read_text()))
    assert record
    path.with_name("later.json").write_text(json.dumps(replace(record, id="f" * 16).as_json()))
    after = read_run(evaluation)
    assert after.table.equals(before.table) and after.scores == before.scores
    (evaluation / "sequential.json").write_text("{}")
    assert any("does not say which images are drawn" in problem for problem in read_run(evaluation).problems)


def test_a_run_that_another_release_plans_otherwise_is_shown_by_its_own_table(evaluation: Path) -> None:
    """As where shipped prompts have changed: of what is planned now nothing is done."""
    before, requested = read_run(evaluation), evaluation / "evaluation.yaml"
    requested.write_text(requested.read_text().replace("images_per_prompt: 2", "images_per_prompt: 1"))
    after = read_run(evaluation)
    assert after.scores == before.scores and len(after.scores) == 2
    assert [problem for problem in after.problems if "plans the request otherwise" in problem]
    assert not [problem for problem in after.problems if "are left" in problem]


def test_a_journal_that_cannot_be_read_costs_the_versions_alone(run: Path) -> None:
    journal = next((run / "logs").glob("*.jsonl"))
    journal.unlink()
    journal.mkdir()
    content = read_run(run)
    assert set(content.scores) == {"uce", "esd"} and "versions" not in content.provenance


def test_a_damaged_file_of_images_is_named_and_its_scores_stay(run: Path) -> None:
    path = next(run.rglob("*.images.parquet"))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    content = read_run(run)
    assert set(content.scores) == {"uce", "esd"}
    assert [problem for problem in content.problems if str(path) in problem]
    assert len(dict(content.images())) < len(set(content.table["image_sha256"].to_pylist()))


def judged_twice(run: Path, first: str, other: str) -> None:
    """Make every verdict that of two judges, the `other` of which answers the opposite; `first` is named first."""
    opened = reopen_run(run)
    for shard in (task for planned in opened.plan.shards.values() for task in planned):
        path, record = opened.folder.output(shard, VERDICTS), opened.folder.record(shard)
        assert record
        table = read_table(path)
        flipped = table.set_column(table.column_names.index("present"), "present", pc.invert(table["present"]))
        named = [
            part.set_column(part.column_names.index("judge"), "judge", pa.array([name] * part.num_rows))
            for part, name in ((table, first), (flipped, other))
        ]
        write_table(path, pa.concat_tables(named))
        facts = record.facts
        opened.folder.finish(shard, [path.parent / name for name in record.outputs], **facts)
    write_table(run / "table.parquet", pa.concat_tables([read_table(path) for path in run.rglob(f"*.{VERDICTS}")]))


@pytest.mark.parametrize(("first", "other"), [("zeta", "alpha"), ("alpha", "zeta")])
def test_without_a_plan_the_judge_is_the_one_that_the_run_names_first(run: Path, first: str, other: str) -> None:
    """As of `efface evaluate`, whose folder holds no campaign."""
    expected = {method: scores.axes for method, scores in read_run(run).scores.items()}
    judged_twice(run, first, other)
    evaluation = {"base": "tiny", "evaluation": {"judges": [f"/elsewhere/{first}.yaml", f"/elsewhere/{other}.yaml"]}}
    (run / "campaign.yaml").unlink()
    (run / "evaluation.yaml").write_text(yaml.safe_dump(evaluation))
    content = read_run(run)
    assert content.judge == first
    again = (
        f"--base tiny --judge /elsewhere/{first}.yaml --judge /elsewhere/{other}.yaml --images-per-prompt 4 --out again"
    )
    assert again in content.provenance["the command that makes it again, in this folder"]
    assert {method: scores.axes for method, scores in content.scores.items()} == expected


def test_a_chain_is_scored_up_to_the_first_request_that_is_not_judged(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    """As the run itself scores it: what follows a gap is no stage."""
    evaluation = {"images_per_prompt": 1, "prompts_per_concept": LIMITS}
    chain = campaign(strategy="continual", concepts={"targets": ["cat", "bus"]}, methods=[UCE], evaluation=evaluation)
    opened = open_run(chain, tmp_path / "run")
    whole = execute(opened, 0, None, Console(file=io.StringIO()))
    assert [len(stages.stages) for stages in whole.stages.values()] == [2]
    assert read_run(tmp_path / "run").stages == whole.stages
    opened.folder.record_file(opened.plan.shards[opened.plan.jobs[0].id][0]).unlink()
    results, content = collect_results(opened.plan, opened.folder), read_run(tmp_path / "run")
    assert content.stages == results.stages == {}
    assert [row.method for row in content.rows] == [row.method for row in results.rows]


@pytest.mark.parametrize("damage", [{"label": 5}, {"job": {"seed": "first"}}])
def test_a_record_of_a_training_that_efface_did_not_write_is_named(run: Path, damage: dict[str, Any]) -> None:
    opened = reopen_run(run)
    model = next(model for model in opened.plan.jobs if model.method == "esd")
    path = run / "jobs" / model.folder / "record.json"
    record = parse_record(json.loads(path.read_text()))
    assert record
    path.write_text(json.dumps(replace(record, facts=record.facts | damage).as_json()))
    content = read_run(run)
    assert [model.method for model in content.models] == ["uce"]
    assert any(str(path) in problem for problem in content.problems)


def test_the_answers_of_the_base_are_there_once(run: Path) -> None:
    table = read_run(run).table
    of_base = table.filter(pc.equal(table["method"], "base"))
    assert of_base.num_rows == table.num_rows // 3


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        read_run(tmp_path)
