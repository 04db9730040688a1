"""`efface attack MODEL`, `efface attacks` and `efface prompts` of a published file."""

import json
from pathlib import Path

import pytest
from command import RunEfface


@pytest.fixture
def delta(efface: RunEfface, base: str, tmp_path: Path) -> Path:
    path = tmp_path / "cat.safetensors"
    assert efface("unlearn", "uce", "-c", "cat", "-b", base, "-o", path).code == 0
    return path


def test_a_model_is_attacked_for_what_it_forgot_within_a_budget(efface: RunEfface, base: str, delta: Path) -> None:
    command = ["attack", delta, "-b", base, "--attack", "completion", "--images", "2", "--budget", "60"]
    result = efface(*command, "--json")
    assert result.code == 0, result
    (found,) = json.loads(result.out)
    assert (found["concept"], found["kind"], found["method"]) == ("cat", "adaptive", "cat")
    assert len(found["instances"]) == 2 and 0 < found["calls"] <= 60 and found["seconds"] > 0
    assert sum(found["ends"].values()) == 2
    shown = efface(*command, "-c", "dog")
    assert shown.code == 0 and "completion" in shown.out and "adaptive" in shown.out


def test_a_control_is_attacked_alike_and_the_report_says_what_that_shows(
    efface: RunEfface, base: str, delta: Path
) -> None:
    command = ["attack", delta, "-b", base, "--attack", "completion", "--images", "1", "--budget", "60"]
    result = efface(*command, "--control", delta, "--json")
    assert result.code == 0, result
    found, control = json.loads(result.out)
    assert (found["method"], control["method"]) == ("cat", "control")
    assert found["control"]["control_post_asr"] == control["post_asr"] == found["post_asr"]
    shown = efface(*command, "--control", delta)
    reading, shows = found["control"]["reading"], found["control"]["control_shows"]
    assert reading == "not back" or (reading == "relearning") == (shows >= 0.5)
    assert "a model that never knew it" in shown.out or "too weak a model" in shown.out
    alone = efface("attack", "-b", base, "--control", delta)
    assert alone.code == 2 and "name a delta to attack" in alone.err


def test_what_does_not_fit_is_refused(efface: RunEfface, base: str, delta: Path) -> None:
    adaptive = efface("attack", "-b", base, "--attack", "p4d")
    assert adaptive.code == 2 and "needs an edited model" in adaptive.err
    out = efface("attack", delta, "-b", base, "-o", "p.csv")
    assert out.code == 2 and "--out is for the prompt file" in out.err


def test_attacks_are_listed_with_their_kind(efface: RunEfface) -> None:
    entries = {entry["name"]: entry["kind"] for entry in json.loads(efface("attacks", "--json").out)}
    assert entries["p4d"] == entries["noise-scale"] == "adaptive"
    assert entries["token-search"] == entries["ring-a-bell"] == entries["published"] == "static"
    assert "3,000" in efface("attacks", "p4d").out or "3000" in efface("attacks", "p4d").out


def test_a_published_file_is_named_for_what_it_is(efface: RunEfface, tmp_path: Path) -> None:
    file = tmp_path / "i2p.csv"
    file.write_text('prompt,categories,sd_seed\na,violence,1\nb,"hate, violence",2\n')
    result = efface("prompts", file)
    assert result.code == 0 and "I2P" in result.out and "violence" in result.out
    found = json.loads(efface("prompts", file, "--json").out)
    assert found["labels"] == {"violence": 2, "hate": 1} and found["prompts"] == 2
    assert found["cut"] == 0 and found["window"] == 75
    file.write_text("A Cats image in Monet style.\n" + "very " * 80 + "long\n")
    file = file.rename(tmp_path / "prompts.txt")
    assert "1 prompts are longer than the 75 tokens" in efface("prompts", file).out
