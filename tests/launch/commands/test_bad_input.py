"""Whatever a user gets wrong is answered by exit code 2 and one sentence: what, where, and what would be right."""

from pathlib import Path
from typing import Any

import pytest
from command import RunEfface
from tiny_campaign import campaign_dict, write_yaml

UNLEARN: dict[str, tuple[list[str], str]] = {
    "method": (["ucee", "-c", "cat"], "unknown method 'ucee': did you mean 'uce'?"),
    "concept": (["uce", "-c", "catt"], "unknown concept 'catt' in concept set tiny: did you mean 'cat'?"),
    "concept set": (["uce", "-c", "cat", "--concepts", "tinyy"], "unknown concept set 'tinyy': known are"),
    "concept set file": (["uce", "-c", "cat", "--concepts", "none.yaml"], "none.yaml: no such file"),
    "preset": (["uce", "-c", "cat", "--preset", "hugee"], "unknown preset 'hugee' of method 'uce'"),
    "field": (["esd", "-c", "cat", "-s", "learning_rat=1"], "config of method 'esd': unknown key 'learning_rat', did"),
    "no value": (["esd", "-c", "cat", "-s", "steps"], "--set 'steps' should be KEY=VALUE"),
    "no key": (["esd", "-c", "cat", "-s", "=3"], "--set '=3' should be KEY=VALUE"),
    "not YAML": (["esd", "-c", "cat", "-s", "steps=[1"], "--set 'steps=[1': the value is not valid YAML"),
    "negative": (["esd", "-c", "cat", "-s", "steps=-1"], "config of method 'esd': steps: input should be greater"),
    "zero": (["esd", "-c", "cat", "-s", "learning_rate=0"], "config of method 'esd': learning_rate: input should be"),
    "NaN": (["esd", "-c", "cat", "-s", "learning_rate=.nan"], "config of method 'esd': learning_rate: input should"),
    "text": (["esd", "-c", "cat", "-s", "steps=many"], "config of method 'esd': steps: input should be a valid int"),
    "device": (["uce", "-c", "cat", "--device", "tpuu"], "--device 'tpuu' is no device"),
    "device not there": (["uce", "-c", "cat", "--device", "cuda:99"], "--device 'cuda:99' is not there"),
    "out is a folder": (["uce", "-c", "cat", "--out", "/tmp"], "--out /tmp: is a folder, should be a file"),
    "out under a file": (["uce", "-c", "cat", "--out", "/dev/null/x"], "--out /dev/null/x: cannot be written"),
    "out in /proc": (["uce", "-c", "cat", "--out", "/proc/x/y"], "/proc/x/y: cannot be written"),
    "out too long": (["uce", "-c", "cat", "--out", f"/tmp/{'x' * 300}"], f"--out /tmp/{'x' * 300}: cannot be written"),
    "twice": (["uce", "-c", "cat", "-c", "Cat"], "concept 'cat' is named twice"),
}


@pytest.mark.parametrize("mistake", UNLEARN)
def test_unlearn(mistake: str, efface: RunEfface, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = UNLEARN[mistake]
    result = efface("unlearn", *arguments, "--base", base)
    assert result.error_message.startswith(expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("miniatur", "unknown base 'miniatur': did you mean 'miniature'?"),
        ("none.yaml", "unknown base 'none.yaml'"),
        ("/no/such/folder", "unknown base '/no/such/folder'"),
        ("/tmp/none.safetensors", "unknown base '/tmp/none.safetensors'"),
        ("", "unknown base ''"),
        ("x" * 300, "unknown base 'xxx"),
        ("/dev/null", "unknown base '/dev/null'"),
        ("random:sd-v1-5", "unknown architecture 'sd-v1-5': did you mean 'sd-v1-4'?"),
    ],
)
def test_a_base(name: str, expected: str, efface: RunEfface) -> None:
    assert efface("unlearn", "uce", "-c", "cat", "--concepts", "miniature", "--base", name).error_message.startswith(
        expected
    )


def test_a_base_that_is_an_empty_folder(efface: RunEfface, tmp_path: Path) -> None:
    result = efface("unlearn", "uce", "-c", "cat", "--concepts", "miniature", "--base", tmp_path)
    assert result.error_message.startswith(str(tmp_path))


def test_a_base_with_a_truncated_file(
    efface: RunEfface, campaign_inputs: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    import shutil

    import yaml

    shutil.copytree(tiny_base_folder, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    spec = yaml.safe_load((campaign_inputs / "base.yaml").read_text())
    file = write_yaml(tmp_path / "base.yaml", {**spec, "source": str(tmp_path / "model")})
    assert "not a whole safetensors file" in efface("unlearn", "uce", "-c", "cat", "--base", file).error_message


def test_a_delta_that_is_none(efface: RunEfface, base: str, tmp_path: Path, tiny_base_folder: Path) -> None:
    (tmp_path / "text").write_text("no delta")
    (tmp_path / "empty").touch()
    other = tiny_base_folder / "unet" / "diffusion_pytorch_model.safetensors"
    for path in (tmp_path / "none", tmp_path, tmp_path / "text", tmp_path / "empty", other):
        for command in (["evaluate", path, "--workers", "0"], ["export", path, tmp_path / "out"]):
            assert str(path) in efface(*command, "--base", base).error_message
    assert not (tmp_path / "out").exists()


EVALUATE: dict[str, tuple[list[str], str]] = {
    "judge": (["--judge", "miniatur"], "unknown judge 'miniatur': did you mean 'miniature'?"),
    "recipe": (["--recipe", "miniatur"], "unknown recipe 'miniatur': did you mean 'miniature'?"),
    "prompts": (["--prompts", "miniatur"], "unknown prompt set 'miniatur': did you mean 'miniature'?"),
    "too many images": (["--images-per-prompt", "9999"], "efface evaluate: images_per_prompt: input should be less"),
    "another base": (["--base", "miniature"], ""),
    "out": (["--out", "/dev/null"], "/dev/null: is a file, should be a folder"),
}


@pytest.mark.parametrize("mistake", EVALUATE)
def test_evaluate(mistake: str, efface: RunEfface, base: str, finished: Path) -> None:
    (delta,) = finished.glob("jobs/*/delta.safetensors")
    arguments, expected = EVALUATE[mistake]
    chosen = arguments if "--base" in arguments else ["--base", base, *arguments]
    error_message = efface("evaluate", delta, "--workers", "0", *chosen).error_message
    assert error_message.startswith(expected)
    if mistake == "another base":
        assert "was made from base 'tiny'" in error_message and "not from 'miniature'" in error_message


def test_a_delta_file_that_is_not_there_is_said_in_few_words(efface: RunEfface, base: str) -> None:
    message = efface("evaluate", "nothere.safetensors", "--base", base).error_message
    assert message == "nothere.safetensors: no such file"


def test_a_table_to_score(efface: RunEfface, tmp_path: Path, finished: Path) -> None:
    (tmp_path / "text").write_text("no table")
    (tmp_path / "empty").mkdir()
    for path in ("text", "empty", "none"):
        assert str(tmp_path / path) in efface("score", tmp_path / path).error_message
    assert "no method 'esdd'" in efface("score", finished, "--method", "esdd").error_message
    assert "no judge 'nobody'" in efface("score", finished, "--judge", "nobody", "--json").error_message


CAMPAIGN: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "unknown key": ({"metods": []}, [], "unknown key 'metods', did you mean 'methods'?"),
    "wrong type": ({"seeds": "many"}, [], "seeds: "),
    "override": ({}, ["--set", "evaluation.shard_size=0"], "evaluation.shard_size: "),
    "unknown override": ({}, ["--set", "evaluation.sharp_size=3"], "unknown key 'evaluation.sharp_size', did you mean"),
    "impossible override": ({}, ["--set", "methods.0.method=uce"], "cannot be applied to the file"),
    "base": ({"base": "miniatur"}, [], "unknown base 'miniatur': did you mean"),
    "method": ({"methods": [{"method": "ucee"}]}, [], "unknown method 'ucee': did you mean 'uce'?"),
    "preset": ({"methods": [{"method": "uce", "preset": "x"}]}, [], "unknown preset 'x' of method 'uce'"),
    "target": ({"concepts": {"targets": ["dogg"]}}, [], "unknown concept 'dogg'"),
    "judge": ({"evaluation": {"judges": ["nobody"]}}, [], "unknown judge 'nobody'"),
    "recipe": ({"evaluation": {"recipe": "none"}}, [], "unknown recipe 'none'"),
    "prompts": ({"evaluation": {"prompts": "none.csv"}}, [], "none.csv: no such file"),
    "no prompts of an axis": ({"evaluation": {"prompts": "direct.csv"}}, [], "no indirect prompt for 'cat'"),
    "CSV": ({"evaluation": {"prompts": "bad.csv"}}, [], "bad.csv, row 2, column concept_name: unknown concept 'catt'"),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("mistake", CAMPAIGN)
def test_a_campaign(
    mistake: str,
    command: str,
    efface: RunEfface,
    campaign_inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{name},a {name}\n" for name in ("cat", "dog", "bus", "tram"))
    (tmp_path / "direct.csv").write_text(f"concept_name,direct_prompt\n{rows}")
    (tmp_path / "bad.csv").write_text("concept_name,direct_prompt\ncatt,a cat\n")
    changes, arguments, expected = CAMPAIGN[mistake]
    file = write_yaml(tmp_path / "campaign.yaml", campaign_dict(campaign_inputs, **changes))
    assert expected in efface(command, file, *arguments).error_message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["demoo", "none.yaml", "/tmp", "x" * 300, ""])
def test_an_unknown_campaign(name: str, efface: RunEfface) -> None:
    assert efface("run", name).error_message.startswith(f"unknown campaign '{name}'")


@pytest.mark.parametrize("out", ["/dev/null", "/dev/null/run", "/proc/run", f"/tmp/{'x' * 300}", "memory://run"])
def test_a_run_folder_that_cannot_be(out: str, efface: RunEfface, campaign_inputs: Path, tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "campaign.yaml", campaign_dict(campaign_inputs))
    assert out in efface("run", file, "--out", out, "--workers", "0").error_message


def test_another_campaign_in_the_run_folder(
    efface: RunEfface, campaign_inputs: Path, tmp_path: Path, finished: Path
) -> None:
    file = write_yaml(
        tmp_path / "campaign.yaml", campaign_dict(campaign_inputs, seeds=[5], methods=[{"method": "uce"}])
    )
    result = efface("run", file, "--out", finished, "--workers", "0").error_message
    assert "holds another run" in result and "give --out another folder" in result


@pytest.mark.parametrize("command", ["status", "retry"])
def test_a_folder_that_holds_no_run(command: str, efface: RunEfface, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/dev/null")):
        assert efface(command, path).error_message.startswith(f"{path}: is not a run folder")


@pytest.mark.parametrize("command", ["cancel", "gc", "logs"])
def test_a_folder_without_a_run_has_nothing_to_stop_to_clear_or_to_tell(
    command: str, efface: RunEfface, tmp_path: Path
) -> None:
    more = ["uce"] if command == "logs" else []
    for path in (tmp_path, tmp_path / "none", "memory://nothing/here"):
        assert efface(command, path, *more).error_message.startswith(f"{path}: is not a run folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["retry", "logs", "cancel"])
def test_a_job_that_is_none(command: str, efface: RunEfface, finished: Path) -> None:
    (job,) = (path.name for path in finished.glob("jobs/*"))
    assert efface(command, finished, "esd-cat").error_message.startswith("'esd-cat' is no job of this run, ")
    assert efface(command, finished, job[:-1] + "x").error_message.endswith(f"did you mean '{job}'?")
    assert efface(command, finished, "").error_message.startswith("'' is no job of this run")


@pytest.mark.parametrize("part", ["1", "1/", "/2", "a/b", "0/3", "4/3", "1/0", "-1/3", "1/2/3", "1.0/2", ""])
def test_a_part_that_is_none(part: str, efface: RunEfface, campaign_inputs: Path, tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "campaign.yaml", campaign_dict(campaign_inputs))
    error_message = efface("run", file, "--out", tmp_path / "run", f"--part={part}").error_message
    assert error_message.startswith(f"--part {part}: should be ")
    assert not (tmp_path / "run" / "jobs").exists()


@pytest.mark.parametrize("url", ["nowhere://bucket/run", "s4://bucket", "s3:///run", "s3://"])
def test_a_place_of_no_known_kind(url: str, efface: RunEfface, campaign_inputs: Path, tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "campaign.yaml", campaign_dict(campaign_inputs))
    for arguments in (["run", file, "--out", url], ["plan", file, "--out", url], ["status", url], ["gc", url]):
        assert url in efface(*arguments).error_message


def test_nothing_to_retry(efface: RunEfface, finished: Path) -> None:
    assert efface("retry", finished).error_message == f"{finished}: no job of this run has failed"


CSV_ERRORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty, should have a header"),
    "no rows": (b"concept_name,direct_prompt\n", "has a header and no rows"),
    "column": (
        b"concept_name,direct_promt\ncat,a cat\n",
        "row 1, column 2: unknown column 'direct_promt', did you mean",
    ),
    "concept": (b"concept_name,direct_prompt\ncatt,a cat\n", "row 2, column concept_name: unknown concept 'catt'"),
    "cells": (b"concept_name,direct_prompt\ncat,a cat,or two\n", "row 2: has 3 cells and the header 2"),
    "not UTF-8": (b"concept_name,direct_prompt\ncat,\xff\n", "row 2, column direct_prompt: not UTF-8 text"),
    "quote": (b'concept_name,direct_prompt\ncat,"a cat\n', "row 2: not valid CSV (a quoted cell is not closed)"),
}


@pytest.mark.parametrize("case", CSV_ERRORS)
def test_a_prompt_file(case: str, efface: RunEfface, campaign_inputs: Path, tmp_path: Path) -> None:
    data, expected = CSV_ERRORS[case]
    file = tmp_path / "prompts.csv"
    file.write_bytes(data)
    result = efface("prompts", file, "--concepts", campaign_inputs / "concepts.yaml").error_message
    assert result.startswith(str(file)) and expected in result


def test_names_that_are_looked_up(efface: RunEfface) -> None:
    assert efface("methods", "ucee").error_message == "unknown method 'ucee': did you mean 'uce'?"
    assert efface("concepts", "miniatur").error_message == "unknown concept set 'miniatur': did you mean 'miniature'?"
    assert efface("prompts", "miniatur").error_message.startswith(
        "unknown prompt set 'miniatur': did you mean 'miniature'?"
    )
    assert efface("prompts", "miniature", "-c", "catt").error_message.startswith("unknown concept 'catt'")
