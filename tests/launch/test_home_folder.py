"""`~` is the home folder wherever a path is taken, also where no shell replaces it; and there may be no home at all."""

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command import RunEfface
from quick_methods import QUICK
from tiny_campaign import ESD, UCE, campaign_dict, write_yaml

from efface.models.delta import Delta

Ask = Callable[..., tuple[list[int], str]]


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
def without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither $HOME nor a home folder by the user's number, as for a number that /etc/passwd does not know."""

    def none(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", none)
    monkeypatch.delenv("HOME", raising=False)


HOMELESS = """
import json, pwd, runpy, sys

def none(number):
    raise KeyError(number)

pwd.getpwuid, codes = none, []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        runpy.run_module("efface", run_name="__main__")
    except SystemExit as end:
        codes.append(end.code)
print(*codes, file=sys.stderr)
"""


@pytest.fixture
def homeless(tmp_path: Path) -> Ask:
    """A function that runs commands of `efface` one after another in a new process that never had a home.

    It gives their exit codes, and what was printed.
    """

    def ask(*commands: list[object]) -> tuple[list[int], str]:
        unset = ("HOME", "EFFACE_CACHE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "USER", "LOGNAME")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        command = [sys.executable, "-c", HOMELESS, json.dumps([[*map(str, words)] for words in commands])]
        done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True)
        return [int(code or 0) for code in done.stderr.splitlines()[-1].split()], done.stdout + done.stderr

    return ask


def test_without_a_home_efface_works_without_a_cache(homeless: Ask, campaign_inputs: Path, tmp_path: Path) -> None:
    base = ["-c", "cat", "-b", campaign_inputs / "base.yaml", "-o"]
    quick = [f"--set={key}={value}" for key, value in QUICK["ca"].items()]
    codes, printed = homeless(
        ["unlearn", "uce", *base, "uce.safetensors"],
        ["unlearn", "ca", *base, "ca.safetensors", *quick],  # it keeps the images of its anchor in the cache
        ["doctor"],
    )
    assert codes[:2] == [0, 0] and codes[2] in (0, 1), printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.safetensors", "uce.safetensors"]


def test_without_a_home_a_ray_of_one_s_own_runs(homeless: Ask, campaign_inputs: Path, tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "campaign.yaml", campaign_dict(campaign_inputs, methods=[UCE]))
    codes, printed = homeless(["run", file, "--out", tmp_path / "run", "--workers", 1])
    assert codes == [0] and (tmp_path / "run" / "leaderboard.csv").is_file(), printed


@pytest.mark.usefixtures("without_a_home")
@pytest.mark.parametrize("arguments", [["--base=~/model"], ["--out=~/d.safetensors"], ["--preset=~/p.yaml"]])
def test_without_a_home_a_path_in_it_is_answered_in_a_sentence(
    arguments: list[str], efface: RunEfface, campaign_inputs: Path
) -> None:
    base = [] if "base" in arguments[0] else ["-b", campaign_inputs / "base.yaml"]
    result = efface("unlearn", "uce", "-c", "cat", *base, *arguments)
    path = arguments[0].partition("=")[2]
    assert result.error_message == f"{path}: no home folder is known here; set HOME, or write the path out"


def test_a_cache_that_cannot_be_written_is_passed_over(
    efface: RunEfface, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", "/dev/null/cache")
    quick = [f"--set={key}={value}" for key, value in QUICK["ca"].items()]
    assert efface("unlearn", "ca", "-c", "cat", "-b", base, "-o", tmp_path / "d.safetensors", *quick).code == 0
