"""What the verbs that read a run say of one that was stopped on the way: what there is so far, or one sentence."""

import shutil
from pathlib import Path

import pytest
from command import RunEfface

from efface.cluster.storage.opening import RESULTS

RUNS = (
    ("campaign", "base judged, and a shard more"),
    ("evaluation", "base judged"),
    ("evaluation", "nothing judged"),
)
"""What was stopped, and when."""


@pytest.fixture(scope="module")
def judged_alone(finished: Path, campaign_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished `efface evaluate` of the campaign's delta."""
    from efface.launch.api import evaluate

    (delta,) = (finished / "jobs").glob("*/delta.safetensors")
    out = tmp_path_factory.mktemp("judged") / "run"
    evaluate(delta, base=str(campaign_inputs / "base.yaml"), images_per_prompt=1, out=out)
    return out


def stop(finished: Path, out: Path, when: str) -> Path:
    """A copy of a run as it is where it was stopped `when`."""
    run = Path(shutil.copytree(finished, out))
    for name in RESULTS:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shards = sorted(path for path in run.glob("evaluations/uce-*/*") if path.suffix == ".json")
    assert shards, "the shards of the edited model have records"
    for record in shards[1:] if when.endswith("a shard more") else shards:
        record.unlink()
    if when == "nothing judged":
        shutil.rmtree(run / "evaluations")
    return run


@pytest.mark.parametrize(("kind", "when"), RUNS)
def test_a_run_that_was_stopped_is_reported_or_refused_in_one_sentence(
    efface: RunEfface, finished: Path, judged_alone: Path, base: str, tmp_path: Path, when: str, kind: str
) -> None:
    run = stop(finished if kind == "campaign" else judged_alone, tmp_path / "run", when)
    again = "efface run" if kind == "campaign" else "efface evaluate"
    for verb in (["package", run, "--out", tmp_path / "package"], ["score", run]):
        message = efface(*verb).error_message
        assert message.startswith(f"{run}: is not finished (") and again in message and " of " in message
    assert not (tmp_path / "package").exists()
    assert all(efface(verb, run).code == 0 for verb in ("status", "report"))
    (delta,) = (run / "jobs").glob("*/delta.safetensors")
    pushed = efface("push", delta, "me/cat", "--run", run, "--base", base)
    assert "did not judge this model to the end" in pushed.error_message


def test_a_run_folder_is_no_model_and_no_package(efface: RunEfface, finished: Path, tmp_path: Path) -> None:
    for verb in (["push", finished, "me/cat"], ["export", finished, tmp_path / "folder"], ["verify", finished]):
        assert efface(*verb).error_message.startswith(f"{finished}: ")


def test_a_model_whose_record_is_gone_is_not_packaged(efface: RunEfface, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (record,) = run.glob("jobs/*/record.json")
    record.unlink()
    assert "is gone or damaged" in efface("package", run, "--out", tmp_path / "package").error_message


def test_a_package_of_the_base_alone_is_refused(efface: RunEfface, judged_alone: Path, tmp_path: Path) -> None:
    run = stop(judged_alone, tmp_path / "run", "base judged")
    assert "is not finished" in efface("package", run, "--out", tmp_path / "package", "--method", "base").error_message
