"""`efface verify`: a package is checked elsewhere, by hashes and by images made again."""

import io
import json
import py_compile
from pathlib import Path

import numpy as np
import pytest
from command import RunEfface
from PIL import Image
from rich.console import Console

from efface.cluster.package.build import manifest
from efface.cluster.package.verify import verify_package
from efface.launch.terminal.progress_bar import progress_bar


def test_a_package_is_verified_by_hashes_and_by_making_an_image_again(
    efface: RunEfface, copied: Path, base: str
) -> None:
    result = efface("verify", copied, "--base", base, "--device", "cpu")
    assert (
        result.code == 0 and "the same to the last bit" in result.out and "1 image made again: as it was" in result.out
    )


def test_a_file_that_was_changed_is_named(efface: RunEfface, copied: Path, base: str) -> None:
    (copied / "scores.csv").write_text("run,method\n")
    (copied / "extra.txt").write_text("x")
    py_compile.compile(str(copied / "load_delta.py"))
    result = efface("verify", copied, "--base", base, "--device", "cpu")
    assert result.code == 1
    lines = result.out.splitlines()
    assert "scores.csv: is not as it was packaged" in lines and "extra.txt: was not packaged; delete it" in lines
    (compiled,) = (line for line in lines if line.startswith("__pycache__/load_delta"))
    assert compiled.endswith(": was not packaged (Python keeps there what it compiled); delete it")


def test_an_image_that_the_model_does_not_make_is_found(efface: RunEfface, copied: Path, base: str) -> None:
    """Whoever changes the image can change the manifest, and not what the model makes."""
    picture = copied / "samples" / "cat.png"
    pixels = np.asarray(Image.open(picture)).copy()
    Image.fromarray(255 - pixels).save(picture)
    (copied / "manifest.json").write_text(json.dumps(manifest(copied)))
    result = efface("verify", copied, "--base", base, "--device", "cpu")
    assert result.code == 1 and "which is not the same image" in result.out


def test_an_image_that_differs_by_rounding_is_the_same_and_not_to_the_last_bit(
    efface: RunEfface, copied: Path, base: str
) -> None:
    described = json.loads((copied / "package.json").read_text())
    described["models"][0]["sample"]["image_sha256"] = "0" * 64  # of an image made elsewhere
    (copied / "package.json").write_text(json.dumps(described))
    (copied / "manifest.json").write_text(json.dumps(manifest(copied)))
    result = efface("verify", copied, "--base", base, "--device", "cpu")
    assert result.code == 0 and "differs by 0.00 grey levels of 255" in result.out


def test_a_sample_that_is_no_image_is_one_sentence(efface: RunEfface, copied: Path, base: str) -> None:
    (copied / "samples" / "cat.png").write_bytes(b"\x89PNG no more")
    (copied / "manifest.json").write_text(json.dumps(manifest(copied)))
    message = efface("verify", copied, "--base", base, "--device", "cpu").error_message
    assert "cat.png: is no image" in message


def test_a_package_names_no_base_that_is_looked_up_elsewhere(efface: RunEfface, copied: Path) -> None:
    assert "give it with --base" in efface("verify", copied).error_message


def test_another_base_is_refused(efface: RunEfface, copied: Path) -> None:
    assert "is not the one" in efface("verify", copied, "--base", "miniature").error_message


def test_a_package_cannot_lead_out_of_its_folder(efface: RunEfface, copied: Path, base: str) -> None:
    described = json.loads((copied / "package.json").read_text())
    described["models"][0]["delta"] = "../secret.safetensors"
    (copied / "package.json").write_text(json.dumps(described))
    (copied / "manifest.json").write_text(json.dumps(manifest(copied)))
    assert "leads out of the package" in efface("verify", copied, "--base", base).error_message


def test_without_a_package_it_is_one_sentence(efface: RunEfface, tmp_path: Path) -> None:
    assert "no such folder" in efface("verify", tmp_path / "nothere").error_message
    (tmp_path / "empty").mkdir()
    assert "is no package" in efface("verify", tmp_path / "empty").error_message


def test_it_says_how_far_it_is(copied: Path, base: str) -> None:
    seen: list[tuple[str, int, int]] = []
    files = verify_package(copied, base, on_progress=lambda *far: seen.append(far)).files
    hashes = [("files hashed", number, files) for number in range(files + 1)]
    assert seen == [*hashes, ("images made again", 0, 1), ("images made again", 1, 1)]


def test_a_bar_is_of_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (True, False):
        written = io.StringIO()
        terminal = Console(file=written, force_terminal=is_terminal, width=80)
        monkeypatch.setattr("efface.launch.terminal.progress_bar.console", lambda stream, given=terminal: given)
        with progress_bar() as on_progress:
            on_progress("models", 1, 3)
            on_progress("files [hashed]", 2, 7)
        text = written.getvalue()
        assert ("1/3" in text and "files [hashed]" in text and "2/7" in text) == is_terminal == bool(text)
