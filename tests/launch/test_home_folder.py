"""`~` is the home folder wherever a path is taken, also where no shell replaces it; and there may be no home at all."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import RunEfface
from tiny_campaign import ESD, UCE, campaign_dict, write_yaml

from efface.models.delta import Delta

Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(campaign_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with the tiny world in it; the current folder is another one, and empty."""
    folder = tmp_path / "home"
    shutil.copytree(campaign_inputs, folder)
    (folder / "model").symlink_to(yaml.safe_load((campaign_inputs / "base.yaml").read_text())["source"])
    own = {key: f"~/{key}.yaml" for key in ("recipe", "judge", "concepts")}
    base = {"name": "tiny", "source": "~/model", "image_size": 16, "prompts": "~/prompts.csv", **own}
    write_yaml(folder / "base.yaml", base)
    write_yaml(folder / "judge.yaml", {"kind": "classifier", "source": "~/judge"})
    write_yaml(folder / "preset.yaml", {"ridge": 0.5})
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_of_every_path_that_unlearn_export_evaluate_and_score_take(efface: RunEfface, home: Path) -> None:
    unlearn = ["unlearn", "uce", "-c", "cat", "--base=~/base.yaml", "--concepts=~/concepts.yaml"]
    assert efface(*unlearn, "--preset=~/preset.yaml", "--out=~/d.safetensors").code == 0
    assert Delta.load(home / "d.safetensors").provenance["job"]["config"]["ridge"] == 0.5
    assert efface("export", "~/d.safetensors", "~/exported", "--base=~/base.yaml").code == 0
    assert (home / "exported" / "unet").is_dir()
    more = ["--recipe=~/recipe.yaml", "--judge=~/judge.yaml", "--prompts=~/prompts.csv", "--images-per-prompt=1"]
    result = efface("evaluate", "~/d.safetensors", "--base=~/base.yaml", *more, "--workers=0", "--out=~/run")
    assert result.code == 0 and (home / "run" / "scores.json").is_file()
    assert efface("score", "~/run").code == 0 and efface("score", "~/run/table.parquet").code == 0
    assert not list(Path.cwd().iterdir())


def test_of_the_base_s_own_folder_and_of_a_chain(efface: RunEfface, home: Path) -> None:
    quick = [f"--set={key}={value}" for key, value in ESD["config"].items()]  # type: ignore[attr-defined]
    unlearn = ["unlearn", "esd", "--base=~/model", "--concepts=~/concepts.yaml", *quick]
    assert efface(*unlearn, "-c", "cat", "--out=~/cat.safetensors").code == 0
    after = ["--after=~/cat.safetensors", "--out=~/dog.safetensors", "--torchrun-job=~/work.json"]
    assert efface(*unlearn, "-c", "dog", *after).code == 0 and (home / "work.json").is_file()
    assert not list(Path.cwd().iterdir())


def test_of_every_path_in_a_campaign(efface: RunEfface, home: Path) -> None:
    evaluation = campaign_dict(home)["evaluation"]
    order = campaign_dict(
        home,
        base="~/base.yaml",
        concepts={"set": "~/concepts.yaml", "targets": ["cat"]},
        methods=[{**UCE, "preset": "~/preset.yaml"}, ESD],
        evaluation={**evaluation, "prompts": "~/prompts.csv", "recipe": "~/recipe.yaml", "judges": ["~/judge.yaml"]},
        training={"tracker": "tensorboard", "tracker_folder": "~/curves"},
    )
    write_yaml(home / "campaign.yaml", order)
    result = efface("run", "~/campaign.yaml", "--out=~/run", "--workers=0")
    assert result.code == 0 and (home / "run" / "leaderboard.csv").is_file(), result
    for look in (["status"], ["gc"], ["logs"]):
        assert efface(*look, "~/run").code == 0
    assert "0 of 2 jobs" in efface("plan", "~/campaign.yaml", "--out=~/run").out
    assert not list(Path.cwd().iterdir())


@pytest.fixture
def homeless(tmp_path: Path, campaign_inputs: Path) -> Ask:
    """A function that runs `efface` where there is neither $HOME nor a home folder by the user's number."""

    def ask(*arguments: object) -> subprocess.CompletedProcess[str]:
        # As pwd answers for a number that /etc/passwd does not know.
        code = "import pwd, runpy\ndef none(number): raise KeyError(number)\npwd.getpwuid = none\n"
        code += "runpy.run_module('efface', run_name='__main__')"
        unset = ("HOME", "EFFACE_CACHE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "USER", "LOGNAME")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True)

    return ask


def test_without_a_home_efface_works_without_a_cache(homeless: Ask, campaign_inputs: Path, tmp_path: Path) -> None:
    quick = ["--set=samples_seen=4", "--set=image_steps=1"]
    for method, more in (("uce", []), ("ca", quick)):  # CA keeps the images of its anchor in the cache
        command = [
            "unlearn",
            method,
            "-c",
            "cat",
            "-b",
            campaign_inputs / "base.yaml",
            "-o",
            f"{method}.safetensors",
            *more,
        ]
        result = homeless(*command)
        assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.safetensors", "uce.safetensors"]
    assert homeless("doctor").returncode in (0, 1) and not (tmp_path / "~").exists()


def test_without_a_home_a_ray_of_one_s_own_runs(homeless: Ask, campaign_inputs: Path, tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "campaign.yaml", campaign_dict(campaign_inputs, methods=[UCE]))
    result = homeless("run", file, "--out", tmp_path / "run", "--workers", 1)
    assert result.returncode == 0 and (tmp_path / "run" / "leaderboard.csv").is_file(), result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [["--base=~/model"], ["--out=~/d.safetensors"], ["--preset=~/p.yaml"]])
def test_without_a_home_a_path_in_it_is_answered_in_a_sentence(
    arguments: list[str], homeless: Ask, campaign_inputs: Path
) -> None:
    base = [] if "base" in arguments[0] else ["-b", campaign_inputs / "base.yaml"]
    result = homeless("unlearn", "uce", "-c", "cat", *base, *arguments)
    path = arguments[0].partition("=")[2]
    assert result.returncode == 2
    assert result.stderr.endswith(f"efface: {path}: no home folder is known here; set HOME, or write the path out\n")


def test_a_cache_that_cannot_be_written_is_passed_over(
    efface: RunEfface, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", "/dev/null/cache")
    out: list[Any] = ["-b", base, "-o", tmp_path / "d.safetensors", "--set=samples_seen=4", "--set=image_steps=1"]
    assert efface("unlearn", "ca", "-c", "cat", *out).code == 0
