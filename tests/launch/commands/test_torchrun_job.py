"""`efface unlearn … --training KEY=VALUE` and `--torchrun-job FILE`: how a job is trained, and a job for torchrun."""

import json
from pathlib import Path

import pytest
from command import RunEfface
from tiny_campaign import ESD_CONFIG

from efface.models.delta import Delta
from efface.train.torchrun import TorchrunJob, main

QUICK = [f"--set={key}={value}" for key, value in ESD_CONFIG.items()]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)


@pytest.mark.usefixtures("alone")
def test_the_file_for_torchrun_makes_the_delta_that_the_command_itself_makes(
    efface: RunEfface, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["unlearn", "esd", "-c", "cat", "-b", base, "--training=attention=sdpa", *QUICK]
    assert efface(*command, "-o", "here.safetensors").code == 0
    result = efface(*command, "-o", "there.safetensors", "--torchrun-job", "job.json")
    assert result.code == 0 and "torchrun --nproc-per-node PROCESSES -m efface.train.torchrun job.json" in result.out
    assert not Path("there.safetensors").exists()

    job = TorchrunJob.model_validate(json.loads(Path("job.json").read_text()))
    assert job.training_options.attention == "sdpa"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main([str(tmp_path / "job.json")]) == 0
    assert Delta.load(tmp_path / "there.safetensors").id == Delta.load(tmp_path / "here.safetensors").id


def test_a_chain_goes_on_in_it(efface: RunEfface, base: str, tmp_path: Path) -> None:
    cat, job = tmp_path / "cat.safetensors", tmp_path / "job.json"
    assert efface("unlearn", "esd", "-c", "cat", "-b", base, "-o", cat, *QUICK).code == 0
    command = ["unlearn", "esd", "-c", "dog", "--after", cat, "-b", base, "-o", tmp_path / "dog.safetensors", *QUICK]
    assert efface(*command, "--torchrun-job", job).code == 0
    loaded = TorchrunJob.model_validate(json.loads(job.read_text()))
    assert (loaded.parent, loaded.job.concepts) == (cat, ("cat", "dog"))


@pytest.mark.parametrize(
    "training, error_message",
    [
        ("deepsped=zero2", "--training: unknown key 'deepsped', did you mean 'deepspeed'?"),
        ("deepspeed", "--training 'deepspeed' should be KEY=VALUE"),
        ("attention=fast", "--training: attention"),
        ("deepspeed=zero22", "unknown deepspeed 'zero22': did you mean 'zero2'?"),
    ],
)
def test_a_mistake_in_how_it_is_trained_is_answered_in_a_sentence(
    training: str, error_message: str, efface: RunEfface, base: str, tmp_path: Path
) -> None:
    for more in ([], ["--torchrun-job", tmp_path / "job.json"]):
        result = efface(
            "unlearn", "esd", "-c", "cat", "-b", base, "--training", training, "-o", tmp_path / "out", *QUICK, *more
        )
        assert result.error_message.startswith(error_message)
    assert list(tmp_path.glob("*.json")) == [] and not (tmp_path / "out").exists()
