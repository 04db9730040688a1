"""What commands write: everything has a file of its own, and what is there is never lost by it."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import RunEfface
from tiny_campaign import ESD_CONFIG, UCE

from efface.errors import UserError
from efface.eval.attack import AdversarialPrompt
from efface.eval.attacking.adversarial_prompts import KeptPrompt
from efface.eval.judging.image_table import read_table
from efface.launch.arguments.output_files import check_writable
from efface.models.delta import Delta
from efface.train.torchrun import main as launched

CampaignFile = Callable[..., Path]
THERE = "exists already and is not the result of this very command"
NAMES = (
    "猫",
    "犬",
    "🐱",
    "C++",
    "C#",
    "a b",
    *(f"The Great Wave off Kanagawa by Hokusai, in {c}" for c in ("blue", "red")),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def named(campaign_inputs: Path, tmp_path: Path) -> Path:
    """A concept set of `NAMES`."""
    concepts = [{"name": name, "kind": "object", "phrase": "a cat", "anchor": "a thing"} for name in NAMES]
    file = tmp_path / "names.yaml"
    file.write_text(yaml.safe_dump({"name": "names", "version": 1, "concepts": concepts}, allow_unicode=True))
    return file


def test_every_concept_has_a_file_of_its_own(efface: RunEfface, base: str, named: Path, here: Path) -> None:
    for name in NAMES:
        assert efface("unlearn", "uce", "-c", name, "-b", base, "--concepts", named).code == 0
    assert sorted(Delta.load(file).provenance["job"]["concepts"][0] for file in here.iterdir()) == sorted(NAMES)


def test_so_have_other_seeds_and_settings_and_concepts_taken_together(efface: RunEfface, base: str, here: Path) -> None:
    cat = ["unlearn", "uce", "-c", "cat", "-b", base]
    for more in ([], ["--seed", 1], ["-s", "ridge=0.25"], ["-c", "dog"], ["-c", "bus"]):
        assert efface(*cat, *more).code == 0
    assert len(list(here.iterdir())) == 5
    assert efface(*cat).code == 0  # the same job again has the same file
    assert len(list(here.iterdir())) == 5


@pytest.fixture
def mine(campaign_inputs: Path, tiny_base_folder: Path, tmp_path: Path) -> dict[str, Path]:
    """What may be named as an output by mistake: files of the user's own, and inputs of the command itself."""
    base = yaml.safe_load((campaign_inputs / "base.yaml").read_text())
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**base, "concepts": str(tmp_path / "concepts.yaml")}))
    (tmp_path / "concepts.yaml").write_bytes((campaign_inputs / "concepts.yaml").read_bytes())
    (tmp_path / "prompts.csv").write_text("concept_name,direct_prompt\ncat,a cat\n")
    (tmp_path / "preset.yaml").write_text("ridge: 0.5\n")
    (tmp_path / "link").symlink_to("prompts.csv")
    (tmp_path / "broken link").symlink_to("nowhere")
    names = ("base.yaml", "concepts.yaml", "prompts.csv", "preset.yaml", "link", "broken link")
    files = {name: tmp_path / name for name in names}
    return {**files, "weights": tiny_base_folder / "unet" / "diffusion_pytorch_model.safetensors"}


INPUTS = {
    "base.yaml": "the base's YAML",
    "concepts.yaml": "the concept set",
    "preset.yaml": "the preset",
    "weights": "the base",
}


@pytest.mark.parametrize(
    "name", ["base.yaml", "concepts.yaml", "prompts.csv", "preset.yaml", "link", "broken link", "weights"]
)
def test_unlearn_replaces_nothing_that_is_no_result_of_it(name: str, mine: dict[str, Path], efface: RunEfface) -> None:
    out = mine[name]
    before = (out.is_symlink(), out.exists() and out.read_bytes())
    command = ["unlearn", "uce", "-c", "cat", "-b", mine["base.yaml"], "--preset", mine["preset.yaml"], "-o", out]
    expected = f"is, or belongs to, {INPUTS[name]}" if name in INPUTS else THERE
    assert efface(*command).error_message.startswith(f"--out {out}: {expected}")
    assert (out.is_symlink(), out.exists() and out.read_bytes()) == before
    if name in INPUTS:  # these not even by force
        assert efface(*command, "--force").error_message.startswith(f"--out {out}: {expected}")
        assert (out.is_symlink(), out.exists() and out.read_bytes()) == before
    else:
        assert efface(*command, "--force").code == 0
        assert Delta.load(out).provenance["job"]["concepts"] == ["cat"]


def test_another_delta_is_replaced_by_force_alone_and_the_same_again_at_once(
    efface: RunEfface, base: str, here: Path
) -> None:
    assert efface("unlearn", "uce", "-c", "cat", "-b", base, "-o", "d.safetensors").code == 0
    before = Path("d.safetensors").read_bytes()
    dog = ["unlearn", "uce", "-c", "dog", "-b", base, "-o", "d.safetensors"]
    assert efface(*dog).error_message.startswith(f"--out d.safetensors: {THERE}; name another file, or give --force")
    assert Path("d.safetensors").read_bytes() == before
    assert efface(*dog, "--force").code == 0 and Path("d.safetensors").read_bytes() != before
    assert efface(*dog).code == 0


def test_a_pipe_or_a_device_is_no_file_to_replace(efface: RunEfface, base: str, here: Path) -> None:
    os.mkfifo("pipe")
    result = efface("unlearn", "uce", "-c", "cat", "-b", base, "--force", "-o", "pipe")
    assert result.error_message == "--out pipe: is a device or a pipe, should be a file"
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    with pytest.raises(UserError, match="--out /dev/null: is a device or a pipe"):
        check_writable(Path("/dev/null"))


def test_of_two_jobs_that_end_at_one_path_neither_replaces_the_other(
    efface: RunEfface, base: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.train import run_job as training

    run_job = training.run_job

    def run_while_another_ends(*arguments: Any, **more: Any) -> Any:
        Path("d.safetensors").write_text("of another command")
        return run_job(*arguments, **more)

    monkeypatch.setattr(training, "run_job", run_while_another_ends)
    result = efface("unlearn", "uce", "-c", "cat", "-b", base, "-o", "d.safetensors")
    (other,) = here.glob("d-*.safetensors")
    assert result.code == 0 and f"the delta is in {other.name}" in result.err and other.name in result.out
    assert other.name == f"d-{Delta.load(other).provenance['job_id']}.safetensors"
    assert Path("d.safetensors").read_text() == "of another command"


def test_a_url_does_not_become_an_odd_folder(efface: RunEfface, base: str, here: Path) -> None:
    result = efface("unlearn", "uce", "-c", "cat", "-b", base, "-o", "s3://bucket/d.safetensors")
    assert result.error_message == "s3://bucket/d.safetensors: is a URL, should be a path on this machine"
    assert not list(here.iterdir())


@pytest.mark.parametrize("there", ["work.json", "d.json", "d.safetensors"])
def test_a_job_for_torchrun_replaces_nothing_either(there: str, efface: RunEfface, base: str, here: Path) -> None:
    Path(there).write_text("{}")
    quick = [f"--set={key}={value}" for key, value in ESD_CONFIG.items()]
    command = ["unlearn", "esd", "-c", "cat", "-b", base, "-o", "d.safetensors", "--torchrun-job", "work.json", *quick]
    assert "exists already and is not the result of this" in efface(*command).error_message
    assert [path.name for path in here.iterdir()] == [there] and Path(there).read_text() == "{}"
    assert efface(*command, "--force").code == 0
    assert efface(*command).code == (0 if there == "work.json" else 2)  # the same work again


def test_torchrun_finds_what_came_after_the_job_was_written(
    efface: RunEfface, base: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    command = ["unlearn", "uce", "-c", "cat", "-b", base, "-o", "d.safetensors", "--torchrun-job", "work.json"]
    assert efface(*command).code == 0
    Path("d.json").write_text("mine")
    assert launched(["work.json"]) == 2
    assert f"{here}/d.json: exists already and is not the result of this job" in capsys.readouterr().err
    assert Path("d.json").read_text() == "mine" and not Path("d.safetensors").exists()
    Path("d.json").unlink()
    assert launched(["work.json"]) == 0 and launched(["work.json"]) == 0  # its own results are no obstacle
    Path("d.json").write_text("mine")
    assert launched(["work.json"]) == 2 and Path("d.json").read_text() == "mine"  # also beside its own delta


@pytest.mark.parametrize(
    ("out", "file", "message"),
    [
        ("d.safetensors", "d.safetensors", "--torchrun-job d.safetensors: is where the delta or its metrics go"),
        ("d.safetensors", "d.json", "--torchrun-job d.json: is where the delta or its metrics go"),
        ("d.json", "work.json", "d.json: ends in .json, as the metrics beside it do"),
    ],
)
def test_results_of_a_torchrun_job_do_not_replace_each_other(
    out: str, file: str, message: str, efface: RunEfface, base: str, here: Path
) -> None:
    result = efface("unlearn", "uce", "-c", "cat", "-b", base, "-o", out, "--torchrun-job", file)
    assert message in result.error_message and not list(here.iterdir())


def test_checkpoints_of_two_jobs_are_two_files(efface: RunEfface, base: str, here: Path) -> None:
    quick = [f"--set={key}={value}" for key, value in ESD_CONFIG.items()]
    checkpoints = set()
    for concept, suffix in (("cat", "a"), ("dog", "b")):
        out = ["-o", f"d.{suffix}", "--torchrun-job", f"{concept}.json"]
        assert efface("unlearn", "esd", "-c", concept, "-b", base, *out, *quick).code == 0
        checkpoints.add(json.loads(Path(f"{concept}.json").read_text())["checkpoint"])
    assert len(checkpoints) == 2


def test_two_judges_of_one_name_are_refused(
    efface: RunEfface, campaign_file: CampaignFile, campaign_inputs: Path, tmp_path: Path
) -> None:
    judge = yaml.safe_load((campaign_inputs / "judge.yaml").read_text())
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump({**judge, "threshold": 0.7}))
    judges = [str(campaign_inputs / "judge.yaml"), str(tmp_path / "judge.yaml")]
    result = efface("plan", campaign_file(methods=[UCE], evaluation={"judges": judges}))
    assert "two are called 'judge' in tables" in result.error_message


@pytest.fixture
def attack(efface: RunEfface, base: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`efface attack` for the cat, with a search that finds one prompt at once."""

    def found(*arguments: Any, targets: Any, **more: Any) -> dict[str, tuple[KeptPrompt, ...]]:
        return {target.name: (KeptPrompt(AdversarialPrompt("zxq", 1.0), None),) for target in targets}

    monkeypatch.setattr("efface.eval.attacking.adversarial_prompts.adversarial_prompts", found)
    return lambda *more: efface("attack", "-b", base, "-c", "cat", *more)


def test_prompt_files_of_attack_have_names_of_their_own(attack: Callable[..., Any], here: Path) -> None:
    for more in ([], ["--seed", 1], ["--per-concept", 2], ["-c", "dog"]):
        assert attack(*more).code == 0
    assert len(list(here.glob("adversarial-tiny-*.csv"))) == len(list(here.iterdir())) == 4


def test_attack_replaces_a_prompt_file_by_force_alone_and_its_own_input_never(
    attack: Callable[..., Any], campaign_inputs: Path, here: Path
) -> None:
    Path("prompts.csv").write_text("mine")
    assert attack("-o", "prompts.csv").error_message.startswith("--out prompts.csv: exists already; name another file")
    assert Path("prompts.csv").read_text() == "mine"
    assert attack("-o", "prompts.csv", "--force").code == 0 and "zxq" in Path("prompts.csv").read_text()
    own = campaign_inputs / "prompts.csv"
    before = own.read_bytes()
    for more in ([], ["--force"]):
        assert attack("-o", own, *more).error_message.startswith(f"--out {own}: is, or belongs to, the prompt set")
    assert own.read_bytes() == before


def test_a_run_does_not_replace_the_file_that_describes_it(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    file = campaign_file(methods=[UCE])
    file.write_text(f"# mine\n{file.read_text()}")
    before = file.read_bytes()
    result = efface("run", file, "--out", tmp_path, "--workers", 0)
    assert result.error_message == f"{file}: was not written by a run; give --out another folder"
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["table.parquet", "scores.json", "leaderboard.csv", "sheets", "trials.csv", "study.jsonl", "stop.json"]
)
def test_a_run_does_not_replace_what_is_in_a_folder_of_no_run(
    name: str, efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    result = efface("run", campaign_file(methods=[UCE]), "--out", tmp_path / "run", "--workers", 0)
    assert result.error_message.startswith(f"{tmp_path / 'run' / name}: was not written by a run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_an_evaluation_does_not_replace_the_results_of_a_campaign(efface: RunEfface, base: str, finished: Path) -> None:
    (delta,) = finished.glob("jobs/*/delta.safetensors")
    before = {path: path.read_bytes() for path in finished.glob("*.*")}
    result = efface("evaluate", delta, "-b", base, "--workers", 0, "-o", finished)
    assert result.error_message.startswith(f"{finished / 'campaign.yaml'}: the folder holds another run")
    assert {path: path.read_bytes() for path in finished.glob("*.*")} == before


def test_evaluations_with_other_settings_have_folders_of_their_own(
    efface: RunEfface, base: str, finished: Path, here: Path
) -> None:
    (delta,) = finished.glob("jobs/*/delta.safetensors")
    evaluate = ["evaluate", delta, "-b", base, "--workers", 0, "--images-per-prompt"]
    assert efface(*evaluate, 1).code == 0 and efface(*evaluate, 2).code == 0 and efface(*evaluate, 1).code == 0
    folders = list((here / "runs").iterdir())
    one, two = sorted(read_table(folder / "table.parquet").num_rows for folder in folders)
    assert two == 2 * one
