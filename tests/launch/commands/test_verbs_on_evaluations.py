"""The verbs of a run on the folder of `efface evaluate`: they do there what they do on a campaign's."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from command import CommandResult, RunEfface

from efface.cluster import run as running
from efface.cluster.run import Run, reopen_run
from efface.cluster.run_results import Results
from efface.cluster.storage.gc import PARTIAL_FILE_AGE
from efface.cluster.storage.journal import TaskStarted
from efface.eval.judging.image_table import read_table
from efface.launch.execution import execute_run


@pytest.fixture
def delta(finished: Path) -> Path:
    (found,) = finished.glob("jobs/uce-*/delta.safetensors")
    return found


@pytest.fixture
def evaluate(efface: RunEfface, base: str, delta: Path, tmp_path: Path) -> RunEfface:
    """Judges the delta in `tmp_path / "run"`, with further options."""

    def run(*options: object) -> CommandResult:
        given = ("--base", base, "--workers", 0, "--out", tmp_path / "run")
        return efface("evaluate", delta, *given, *options)

    return run


def give_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next evaluation gives its model up before it begins."""

    def execute(run: Run, workers: int | None, address: str | None) -> Results:
        run.folder.fail(run.plan.jobs[0], "judging", "the judge broke")
        return execute_run(run, workers, address)

    monkeypatch.setattr("efface.launch.commands.evaluate.execute_run", execute)


def files(root: Path) -> dict[str, bytes]:
    """All of a run folder but who held its lease."""
    kept = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "leases")
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


def test_a_model_that_was_given_up_is_judged_when_it_is_retried_and_further_looks_are_drawn(
    efface: RunEfface, evaluate: RunEfface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    with monkeypatch.context() as patch:
        give_up_once(patch)
        assert evaluate("--images-per-prompt", 2, "--until", "forget=0.5").code == 1
    (job,) = reopen_run(root).plan.jobs
    assert f"failed: {job.folder} (judging): the judge broke" in efface("status", root).out
    assert json.loads((root / "sequential.json").read_text())["images_per_prompt"]["retain"] == 1
    assert efface("retry", root, "base").error_message.startswith(f"{root}: job base-")
    result = efface("retry", root, "uce", "--workers", 0)
    assert result.code == 0 and "uce" in result.out
    assert set(read_table(root / "table.parquet")["method"].to_pylist()) == {"base", "uce"}
    found = json.loads((root / "sequential.json").read_text())
    assert found["question"] == {"forget": 0.5} and found["images_per_prompt"]["retain"] == 2
    assert efface("retry", root).error_message == f"{root}: no job of this run has failed"


def test_clearing_an_evaluation_removes_what_its_tasks_left_and_nothing_else(
    efface: RunEfface, evaluate: RunEfface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    assert evaluate("--images-per-prompt", 1).code == 0
    assert efface("gc", root).out == "nothing to remove\n"
    (job,), earlier, moment = reopen_run(root).plan.jobs, "esd-dog-0123456789abcdef", time.time() - 2 * PARTIAL_FILE_AGE
    started = TaskStarted(time="t", worker=0, task="judging", id="any", description="esd: dog", model=earlier[-16:])
    (root / "logs" / "20260101T000000.000000Z.jsonl").write_text(started.model_dump_json() + "\n")
    garbage = {
        f"evaluations/{job.folder}/.00000.json.efface-abcdefgh",
        f"evaluations/{job.folder}/00000-0123456789abcdef.progress",
        f"jobs/{earlier}/failure.json",
    }
    theirs = {f"evaluations/{job.folder}/notes.md", "jobs/notes/failure.json", f"jobs/{earlier}/notes.md"}
    for path in map(root.joinpath, garbage | theirs):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 5)
        os.utime(path, (moment, moment))
    before = files(root)
    would = efface("gc", root, "--dry-run")
    assert would.code == 0 and all(f"5 bytes  {root / name}\n" in would.out for name in garbage)
    assert files(root) == before
    assert efface("gc", root).out.splitlines()[-1].endswith(" 15 bytes in all removed")
    assert files(root) == {name: content for name, content in before.items() if name not in garbage}
    monkeypatch.setattr(running, "LocalExecutor", lambda *given: 1 / 0)
    assert evaluate("--images-per-prompt", 1).code == 0


def test_a_folder_that_says_not_what_was_requested_is_refused_in_a_sentence(
    efface: RunEfface, finished: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    (root / "campaign.yaml").rename(root / "search.yaml")
    before = files(root)
    for verb in ("status", "logs", "cancel", "retry", "gc"):
        expected = f"{root}: is the folder of a search, which `efface search` goes on with and `efface report` shows"
        assert efface(verb, root).error_message == expected
    (root / "search.yaml").unlink()
    expected = f"{root}: says nowhere what was requested in it, it holds no campaign.yaml and no evaluation.yaml"
    assert efface("gc", root).error_message == expected
    assert efface("report", tmp_path / "run", "--out", tmp_path / "report.html").code == 0
    assert files(root).items() <= before.items()
