"""efface from Python does what the command line does, and gives back typed results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import RunEfface

import efface
from efface.errors import UserError
from efface.models.delta import Delta


@pytest.fixture(name="efface_command")
def _efface_command(request: pytest.FixtureRequest) -> RunEfface:
    """The command line, whose fixture has the name of the module."""
    command: RunEfface = request.getfixturevalue("efface")
    return command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_unlearn_gives_the_bytes_that_the_command_line_writes(
    efface_command: RunEfface, base: str, folder: Path
) -> None:
    edited = efface.unlearn("esd", "cat", base=base, config={"steps": 2, "learning_rate": 1e-3}, out="a.safetensors")
    arguments = ("unlearn", "esd", "--concept", "cat", "--base", base, "-s", "steps=2", "-s", "learning_rate=1e-3")
    assert efface_command(*arguments, "-o", "b.safetensors").code == 0
    assert edited.path.read_bytes() == (folder / "b.safetensors").read_bytes()
    assert edited.request == ("cat",)
    assert "relative L2 change" in edited._repr_html_() and "<table>" in edited._repr_html_()


def test_evaluate_takes_what_unlearn_gives_and_score_agrees(base: str, folder: Path) -> None:
    edited = efface.unlearn("uce", "cat", base=base, out="cat.safetensors")
    judged = efface.evaluate(edited, base=base, images_per_prompt=1, out="run", device="cpu")
    row = next(row for row in judged.rows if row.method == "uce")
    scores = efface.score("run")
    assert scores.methods["uce"].err_mean == row.err_mean
    shown = judged._repr_html_()
    assert f"<td>{row.err_mean:.3f}</td>" in shown and '<img alt="cat" src="data:image/webp;base64,' in shown
    assert f"<td>{scores.methods['uce'].concepts['cat']['err']:.3f}</td>" in scores._repr_html_()
    for result in (edited, judged, scores):
        assert len(repr(result)) < 150 and " at 0x" not in repr(result) and type(result).__name__ in repr(result)
    assert f"uce: {row.err_mean:.3f}" in repr(judged) and f"uce: {row.err_mean:.3f}" in repr(scores)
    with pytest.raises(UserError, match="run: is the folder of a run and no base"):
        efface.load("run")
    judged.folder.request_stop()  # as if it had been stopped once
    efface.evaluate(edited, base=base, images_per_prompt=1, out="run", device="cpu")
    assert judged.folder.stop_request() is None


def test_a_pipeline_is_diffusers_own_with_the_edited_weights(base: str, folder: Path) -> None:
    edited = efface.unlearn("uce", "cat", base=base, out="cat.safetensors")
    pipe = efface.pipeline(base, edited, device="cpu")
    assert type(pipe).__module__.startswith("diffusers.")
    weights = dict(pipe.unet.named_parameters())
    changed = Delta.load(edited.path).edited(efface.load(base, "cpu"))
    assert changed and all(torch.equal(weights[name.removeprefix("unet.")], value) for name, value in changed.items())
    loaded = efface.load(base, "cpu", edited)
    in_notebook = loaded._repr_html_()
    assert f"<td>{loaded.applied.id}, uce forgets cat</td>" in in_notebook  # type: ignore[union-attr]
    count = sum(weight.numel() for weight in pipe.unet.parameters()) / 1e6
    assert f"unet {count:.1f} million" in in_notebook and "none: it is not edited" not in in_notebook
    loaded.swap(None)
    assert "none: it is not edited" in loaded._repr_html_()
    plain = dict(efface.pipeline(base, device="cpu").unet.named_parameters())
    assert not any(torch.equal(plain[name.removeprefix("unet.")], value) for name, value in changed.items())


def test_mistakes_are_one_sentence(base: str, folder: Path) -> None:
    with pytest.raises(UserError, match="did you mean"):
        efface.unlearn("ecd", "cat", base=base)
    with pytest.raises(AttributeError, match="has no attribute 'learn'"):
        _ = efface.learn


def test_dir_shows_what_there_is() -> None:
    assert {"unlearn", "evaluate", "score", "load", "pipeline"} <= set(dir(efface))
    assert not {"importlib", "Any", "API"} & set(dir(efface))


def test_importing_efface_imports_nothing_heavy() -> None:
    code = "import efface, sys; assert 'torch' not in sys.modules and 'typer' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(Path(efface.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
