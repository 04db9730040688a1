"""`efface unlearn … --after DELTA`: the next request of a chain."""

from pathlib import Path

import pytest
from command import RunEfface
from tiny_campaign import ESD_CONFIG

from efface.models.delta import Delta
from efface.train.job import Job

QUICK = [f"--set={key}={value}" for key, value in ESD_CONFIG.items()]


@pytest.fixture
def cat(efface: RunEfface, base: str, tmp_path: Path) -> Path:
    """A delta of ESD that erased the cat."""
    file = tmp_path / "cat.safetensors"
    assert efface("unlearn", "esd", "-c", "cat", "-b", base, "-o", file, *QUICK).code == 0
    return file


def test_a_chain_is_made_one_command_at_a_time(efface: RunEfface, base: str, cat: Path, tmp_path: Path) -> None:
    second, third = tmp_path / "second.safetensors", tmp_path / "third.safetensors"
    assert efface("unlearn", "esd", "-c", "Bus", "--after", cat, "-b", base, "-o", second, *QUICK).code == 0
    result = efface("unlearn", "esd", "-c", "dog", "--after", second, "-b", base, "-o", third, *QUICK)
    assert result.code == 0 and "esd on dog, after cat, bus" in result.out
    delta = Delta.load(third)
    job = Job.model_validate(delta.provenance["job"])
    assert (job.strategy, job.concepts) == ("continual", ("cat", "bus", "dog"))
    assert job.parent == Delta.load(second).provenance["job_id"]
    assert [request["delta"] for request in delta.lineage] == [Delta.load(f).id for f in (cat, second, third)]
    assert [request["concepts"] for request in delta.lineage] == [["cat"], ["bus"], ["dog"]]


def test_a_chain_s_files_do_not_overwrite_one_another(
    efface: RunEfface, base: str, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert efface("unlearn", "esd", "-c", "bus", "-b", base, *QUICK).code == 0
    assert efface("unlearn", "esd", "-c", "bus", "--after", cat, "-b", base, *QUICK).code == 0
    alone, after = sorted(map(Delta.load, tmp_path.glob("esd-bus-*")), key=lambda delta: len(delta.lineage))
    assert (len(alone.lineage), len(after.lineage)) == (1, 2)


def test_a_mistaken_request_is_answered_in_a_sentence(efface: RunEfface, base: str, cat: Path, tmp_path: Path) -> None:
    nameless = tmp_path / "nameless.safetensors"
    Delta("weights", Delta.load(cat).tensors, {"base_id": Delta.load(cat).base_id}).save(nameless)
    out = tmp_path / "out.safetensors"
    mistakes = {
        "none.safetensors: no such file": ["esd", "-c", "dog", "--after", "none.safetensors"],
        f"--after {nameless}: does not say which job made it": ["esd", "-c", "dog", "--after", nameless],
        f"--after {cat}: has erased 'cat' already": ["esd", "-c", "Cat", "--after", cat],
        "--after takes one request at a time": ["esd", "-c", "dog", "-c", "bus", "--after", cat],
        "unknown concept 'dogg'": ["esd", "-c", "dogg", "--after", cat],
        "method 'uce' solves the requests of a chain together": ["uce", "-c", "dog", "--after", cat],
    }
    for error_message, arguments in mistakes.items():
        assert efface("unlearn", *arguments, "-b", base, "-o", out).error_message.startswith(error_message)
    assert not out.exists()
    over_itself = efface("unlearn", "esd", "-c", "dog", "--after", cat, "-b", base, "-o", cat)
    assert over_itself.error_message.startswith(f"--out {cat}: is, or belongs to, the delta given by --after")
