"""`efface push` and `efface pull` on a local hub: what is published, its card, and that an id stands for a delta."""

import json
import re
from pathlib import Path

import pyarrow.compute as pc
import pytest
from command import RunEfface
from hub_server import TOKEN, Hub, hub
from huggingface_hub import ModelCard

from efface.eval.judging.image_table import read_table
from efface.models.delta import Delta

__all__ = ["hub"]


@pytest.fixture
def delta(finished: Path) -> Path:
    """Of the campaign's only job."""
    (path,) = (finished / "jobs").glob("*/delta.safetensors")
    return path


@pytest.fixture
def pushed(efface: RunEfface, hub: Hub, delta: Path, finished: Path, base: str) -> dict[str, bytes]:
    """The files of a repository `me/cat` to which the delta was sent."""
    result = efface("push", delta, "me/cat", "--run", finished, "--base", base, "--send")
    assert result.code == 0, result.err
    return hub.repositories["me/cat"]


def harmonic_mean(values: list[float]) -> float:
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)


def test_nothing_is_sent_unless_told(efface: RunEfface, hub: Hub, delta: Path, finished: Path, base: str) -> None:
    result = efface("push", delta, "me/cat", "--run", finished, "--base", base)
    assert result.code == 0 and "Nothing was sent to me/cat" in result.out and "delta.safetensors" in result.out
    assert hub.requests == []


def test_what_is_sent_is_the_delta_its_loader_and_a_card(pushed: dict[str, bytes], hub: Hub, delta: Path) -> None:
    assert set(pushed) == {"README.md", "delta.safetensors", "load_delta.py"}
    assert pushed["delta.safetensors"] == delta.read_bytes()
    assert hub.private == {"me/cat": True}


def test_the_numbers_of_the_card_are_those_of_the_image_table(pushed: dict[str, bytes], finished: Path) -> None:
    """The five accuracies counted here, from the rows; ERR by its formula."""
    table = read_table(finished / "table.parquet")
    rows = table.filter(pc.equal(table["method"], "uce")).to_pylist()
    expected = {}
    for axis in ("forget", "indirect", "adversarial", "adjacent", "retain"):
        held_out = {"adjacent": ("dog",), "retain": ("tram", "dog")}.get(axis)
        answers = [r["present"] for r in rows if r["axis"] == axis and (not held_out or r["asked_concept"] in held_out)]
        share = sum(answers) / len(answers)
        expected[axis] = 1 - share if axis in ("forget", "indirect", "adversarial") else share
    expected["err"] = harmonic_mean(list(expected.values()))
    card = ModelCard(pushed["README.md"].decode())
    results = {result.metric_config: result for result in card.data.eval_results}
    assert {axis: result.metric_value for axis, result in results.items()} == pytest.approx(expected, abs=1e-6)
    assert {result.dataset_config for result in results.values()} == {"cat"}
    assert all(re.search(r"95 % interval 0\.\d+ to [01]\.\d+", result.metric_name) for result in results.values())
    (line,) = [line for line in card.text.splitlines() if line.startswith("| cat | ")]
    assert [float(cell) for cell in line.split("|")[2:8]] == pytest.approx(list(expected.values()), abs=5e-4)


def test_the_card_says_what_was_attacked_and_what_it_is_for(pushed: dict[str, bytes]) -> None:
    card = pushed["README.md"].decode()
    assert "## Attacks tried" in card and "Whether a search on this very model brings the" in card
    assert "## Intended use" in card and "Not a safety guarantee" in card
    assert "efface" in (ModelCard(card).data.tags or [])


def test_a_delta_that_nobody_judged_says_so(efface: RunEfface, hub: Hub, delta: Path) -> None:
    result = json.loads(efface("push", delta, "me/cat", "--json").out)
    assert result["sent"] is None and "It was not judged" in result["card"]
    assert ModelCard(result["card"]).data.eval_results is None


def test_a_hub_id_stands_for_a_delta(
    efface: RunEfface, pushed: dict[str, bytes], delta: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import efface as api

    monkeypatch.chdir(tmp_path)
    assert efface("pull", "me/cat", "-o", "pulled.safetensors").code == 0
    assert (tmp_path / "pulled.safetensors").read_bytes() == delta.read_bytes()
    assert efface("export", "me/cat", "exported", "--base", base).code == 0
    written = json.loads((tmp_path / "exported" / "efface.json").read_text())
    assert written["delta"] == Delta.load(delta).id
    loaded = api.load(base, "cpu", delta="me/cat")
    assert loaded.applied is not None and loaded.applied.id == written["delta"]
    evaluated = efface(
        "evaluate", "hf://me/cat@main/delta.safetensors", "--base", base, "--images-per-prompt", 1, "--workers", 0
    )
    assert evaluated.code == 0, evaluated.err


def test_a_folder_is_sent_with_a_card_and_loads_from_its_files(
    efface: RunEfface, hub: Hub, delta: Path, finished: Path, base: str, tmp_path: Path
) -> None:
    assert efface("export", delta, tmp_path / "model", "--base", base).code == 0
    result = efface("push", tmp_path / "model", "me/whole", "--run", finished, "--base", base, "--send", "--public")
    assert result.code == 0, result.err
    files = hub.repositories["me/whole"]
    assert hub.private == {"me/whole": False}
    assert {"README.md", "model_index.json", "unet/diffusion_pytorch_model.safetensors", "efface.json"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "text-to-image" and 'from_pretrained("me/whole")' in card.text
    assert "name it as a base" in efface("pull", "me/whole", "-o", tmp_path / "x.safetensors").error_message
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "model" / "notes.txt").symlink_to(tmp_path / "secret")
    refused = efface("push", tmp_path / "model", "me/other", "--run", finished, "--base", base, "--send")
    assert "notes.txt: is a link that leads out of the folder" in refused.error_message
    assert "me/other" not in hub.repositories


def test_a_package_is_sent_as_it_is_and_its_only_delta_is_found(
    efface: RunEfface, hub: Hub, finished: Path, delta: Path, tmp_path: Path
) -> None:
    package = tmp_path / "package"
    assert efface("package", finished, "--out", package, "--weights", "none").code == 0
    assert efface("push", package, "me/package", "--send").code == 0
    sent = hub.repositories["me/package"]
    assert sent == {p.relative_to(package).as_posix(): p.read_bytes() for p in package.rglob("*") if p.is_file()}
    results = ModelCard(sent["README.md"].decode()).data.eval_results
    assert results and {result.metric_config for result in results} >= {"err", "forget"}
    assert efface("pull", "me/package", "-o", tmp_path / "d.safetensors").code == 0
    assert (tmp_path / "d.safetensors").read_bytes() == delta.read_bytes()
    (package / "scores.csv").write_text("changed")
    assert "is not as it was packaged" in efface("push", package, "me/package", "--send").error_message


def test_a_token_is_the_users_own_and_is_shown_nowhere(
    efface: RunEfface, hub: Hub, delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = efface("push", delta, "me/cat", "--send")
    assert "hf auth login" in refused.error_message and hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("efface.models.files.hub.check_repository", _failing)
    assert "hf_" not in refused.err + efface("push", delta, "me/cat", "--send").err


def _failing(_: str) -> None:
    from efface.errors import UserError

    raise UserError("refused")


def test_what_cannot_be_sent_or_fetched_is_one_sentence(
    efface: RunEfface, hub: Hub, delta: Path, finished: Path, base: str, tmp_path: Path
) -> None:
    assert "owner/name" in efface("push", delta, "cat").error_message
    assert "efface export" in efface("push", finished, "me/cat").error_message
    assert "not to be had from the hub" in efface("export", "me/nothing", tmp_path / "x", "--base", base).error_message
    hub.repositories["me/empty"] = {"README.md": b""}
    assert "has no delta" in efface("pull", "me/empty", "-o", tmp_path / "x.safetensors").error_message
    hub.repositories["me/many"] = {"deltas/a.safetensors": b"", "deltas/b.safetensors": b""}
    assert "hf://me/many/deltas/a.safetensors" in efface("pull", "me/many", "-o", tmp_path / "x.st").error_message
    assert "no such file" in efface("export", tmp_path / "missing.safetensors", tmp_path / "x").error_message
    assert "is no hub id" in efface("pull", tmp_path / "cat.safetensors").error_message
