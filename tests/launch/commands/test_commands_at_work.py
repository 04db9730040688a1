"""The commands on the tiny world: erase, export, evaluate, score, and a campaign from its plan to its retry."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import RunEfface
from tiny_campaign import ESD, IMAGES_PER_PROMPT, PROMPTS, UCE

from efface.eval.judging.image_table import read_table
from efface.models.base import load_base
from efface.models.delta import Delta

IMAGES = PROMPTS * IMAGES_PER_PROMPT
HOT = {"method": "esd", "label": "hot", "config": {"steps": 4, "learning_rate": 1e30, "rollout_steps": 3}}

ALL_DONE = f"tiny: jobs 1/1, images {2 * IMAGES}/{2 * IMAGES}\n  nobody is at work on it\n"

CampaignFile = Callable[..., Path]


def the_delta(folder: Path) -> Path:
    (delta,) = folder.glob("jobs/uce-*/delta.safetensors")
    return delta


def test_unlearn_writes_the_delta_that_a_campaign_makes(
    efface: RunEfface, base: str, finished: Path, tmp_path: Path
) -> None:
    result = efface("unlearn", "uce", "--concept", "cat", "--base", base, "--out", tmp_path / "d.safetensors")
    assert result.code == 0 and str(tmp_path / "d.safetensors") in result.out and "weight change" in result.out
    assert (tmp_path / "d.safetensors").read_bytes() == the_delta(finished).read_bytes()


def test_unlearn_names_its_file_by_method_concepts_and_job(
    efface: RunEfface, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert efface("unlearn", "uce", "-c", "Cat", "-c", "dog", "--base", base).code == 0
    (file,) = tmp_path.iterdir()
    provenance = Delta.load(file).provenance
    assert file.name == f"uce-cat-dog-{provenance['job_id']}.safetensors"
    assert (provenance["job"]["concepts"], provenance["job"]["strategy"]) == (["cat", "dog"], "multi")


def test_settings_override_the_defaults(efface: RunEfface, base: str, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    settings = ["--set", "ridge=0.25", "--set", "templates=['{}', 'a photo of {}']", "--seed", 3]
    assert efface("unlearn", "uce", "-c", "cat", "-b", base, "-o", out, *settings).code == 0
    job = Delta.load(out).provenance["job"]
    assert (job["config"]["ridge"], job["config"]["templates"], job["seed"]) == (0.25, ["{}", "a photo of {}"], 3)


def test_a_loss_that_is_not_finite_ends_with_1_and_says_where_and_why(
    efface: RunEfface, base: str, tmp_path: Path
) -> None:
    settings = [f"--set={key}={value}" for key, value in HOT["config"].items()]  # type: ignore[attr-defined]
    result = efface("unlearn", "esd", "-c", "cat", "-b", base, "-o", tmp_path / "d.safetensors", *settings)
    assert result.code == 1 and "Traceback" not in result.err
    assert "at step" in result.err and "of 4: the learning rate 1e+30 is probably too high" in result.err
    assert not (tmp_path / "d.safetensors").exists()


def test_export_writes_a_folder_that_is_the_edited_model(
    efface: RunEfface, base: str, finished: Path, tmp_path: Path
) -> None:
    result = efface("export", the_delta(finished), tmp_path / "model", "--base", base)
    assert result.code == 0 and (tmp_path / "model" / "model_index.json").is_file()
    edited, exported = load_base(base), load_base(tmp_path / "model")
    edited.swap(Delta.load(the_delta(finished)))
    assert all(torch.equal(value, exported.tensors()[name]) for name, value in edited.tensors().items())


def test_evaluate_judges_a_delta_as_a_campaign_does(
    efface: RunEfface, base: str, finished: Path, tmp_path: Path
) -> None:
    options = ["--base", base, "--images-per-prompt", 1, "--out", tmp_path / "run", "--workers", 0]
    result = efface("evaluate", the_delta(finished), *options)
    assert result.code == 0 and "uce" in result.out and str(tmp_path / "run" / "table.parquet") in result.out
    key = ("method", "axis", "asked_concept", "prompt", "seed", "present", "image_sha256")
    here, there = (
        {tuple(row[name] for name in key) for row in read_table(folder / "table.parquet").to_pylist()}
        for folder in (tmp_path / "run", finished)
    )
    assert {row for row in there if row[4] == 0} <= here


def test_two_deltas_that_claim_one_job_are_two_models(
    efface: RunEfface, base: str, finished: Path, tmp_path: Path
) -> None:
    first = Delta.load(the_delta(finished))
    other = Delta(first.kind, {name: -value for name, value in first.tensors.items()}, first.provenance)
    other.save(tmp_path / "other.safetensors")
    options = ["--base", base, "--images-per-prompt", 1, "--out", tmp_path / "run", "--workers", 0]

    def judged(delta: Path) -> set[str]:
        assert efface("evaluate", delta, *options).code == 0
        table = read_table(tmp_path / "run" / "table.parquet").to_pylist()
        return {row["image_sha256"] for row in table if row["method"] == "uce"}

    assert judged(the_delta(finished)).isdisjoint(judged(tmp_path / "other.safetensors"))


def test_score_recomputes_the_scores_of_a_run_from_its_table_alone(efface: RunEfface, finished: Path) -> None:
    scores = json.loads((finished / "scores.json").read_text())["methods"]["uce"]
    for table in (finished, finished / "table.parquet"):
        assert json.loads(efface("score", table, "--json").out) == scores
    assert efface("score", finished).code == 0
    assert "by the judge's threshold" in efface("score", finished, "--curve").out


def test_a_plan_counts_what_is_left(efface: RunEfface, campaign_file: CampaignFile, finished: Path) -> None:
    file = campaign_file(methods=[UCE])
    fresh = json.loads(efface("plan", file, "--out", finished.parent / "none", "--json").out)
    assert fresh["all"] == fresh["left"] == {"jobs": 1, "shards": 6, "images": 2 * IMAGES}
    assert [(model["method"], model["concepts"]) for model in fresh["models"]] == [("base", []), ("uce", ["cat"])]
    done = json.loads(efface("plan", file, "--out", finished, "--json").out)
    assert done["left"] == {"jobs": 0, "shards": 0, "images": 0} and done["models"][1]["id"] == fresh["models"][1]["id"]
    assert "0 of 1 jobs, 0 of 6 shards, 0 of 28 images left to do" in efface("plan", file, "--out", finished).out
    assert not (finished.parent / "none").exists()


def test_prompts_that_are_cut_are_named_by_the_plan_by_the_run_and_in_its_results(
    efface: RunEfface, campaign_inputs: Path, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    text = (campaign_inputs / "prompts.csv").read_text()
    (tmp_path / "long.csv").write_text(text.replace("hint of tac", "y" * 80))
    limits = {"adjacent": 1, "retain": 1, "forget": 1}
    file = campaign_file(
        methods=[UCE],
        evaluation={"prompts": str(tmp_path / "long.csv"), "images_per_prompt": 1, "prompts_per_concept": limits},
    )
    note = f"note: {tmp_path}/long.csv: 1 of 6 prompts are longer than the 75 tokens"
    place = "row 2, column indirect_prompt (80 tokens)"
    planned = efface("plan", file, "--out", tmp_path / "run").out
    (warning,) = json.loads(efface("plan", file, "--out", tmp_path / "run", "--json").out)["warnings"]
    assert note in planned and place in planned and place in warning
    for part in ([], ["--part", "1/1"]):
        done = efface("run", file, "--out", tmp_path / f"run{len(part)}", "--workers", 0, *part)
        assert done.code == 0 and note in done.out and place in done.out
    assert json.loads((tmp_path / "run0" / "scores.json").read_text())["warnings"] == [warning]


def test_status_of_a_finished_run(efface: RunEfface, finished: Path) -> None:
    report = json.loads(efface("status", finished, "--json").out)
    assert report["jobs"] == {"all": 1, "done": 1, "failed": 0, "blocked": 0, "left": 0} and report["failures"] == []
    assert efface("status", finished).out == ALL_DONE


def test_a_campaign_overridden_on_the_command_line(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    options = ["--set", "methods=[{method: uce, label: u}]", "--set", "evaluation.images_per_prompt=1"]
    result = efface("run", campaign_file(), "--out", tmp_path / "run", "--workers", 0, *options)
    assert result.code == 0 and "u " in result.out
    assert set(read_table(tmp_path / "run" / "table.parquet")["method"].to_pylist()) == {"base", "u"}


def test_a_failed_job_is_reported_seen_in_the_status_and_tried_again(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    file = campaign_file(methods=[UCE, {**HOT, "label": "[/hot]"}])
    result = efface("run", file, "--out", root, "--workers", 0)
    assert result.code == 1 and "Traceback" not in result.out + result.err
    assert "the learning rate 1e+30 is probably too high" in result.out and f"`efface retry {root}`" in result.out
    assert set(read_table(root / "table.parquet")["method"].to_pylist()) == {"base", "uce"}

    report = json.loads(efface("status", root, "--json").out)
    assert (
        report["jobs"] == {"all": 2, "done": 1, "failed": 1, "blocked": 0, "left": 0}
        and report["tasks"]["judging"]["failed"] == IMAGES
    )
    shown = efface("status", root).out
    assert "jobs 1/2, 1 failed" in shown and "(training): the loss is" in shown and f"efface retry {root}" in shown

    assert efface("run", file, "--out", root, "--workers", 0).code == 1
    (failure,) = root.glob("jobs/*/failure.json")
    failure.write_text(json.dumps({"stage": "training", "reason": "of an earlier day", "details": ""}))
    assert efface("retry", root, "--workers", 0).code == 1
    assert "probably too high" in json.loads(failure.read_text())["reason"]


def test_retry_finishes_what_failed_by_bad_luck(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.cluster.tasks.training import TrainingTask

    root = tmp_path / "run"
    really = TrainingTask.run

    def unlucky(self: TrainingTask, worker: object) -> None:
        raise OSError("the disk was away")

    monkeypatch.setattr(TrainingTask, "run", unlucky)
    result = efface("run", campaign_file(methods=[ESD]), "--out", root, "--workers", 0)
    assert result.code == 1
    assert (
        result.out.count("the disk was away") == 3 and "will be tried again" in result.out and "given up" in result.out
    )
    monkeypatch.setattr(TrainingTask, "run", really)
    result = efface("retry", root, "--workers", 0)
    assert result.code == 0 and "esd" in result.out
    assert efface("status", root).out == ALL_DONE
