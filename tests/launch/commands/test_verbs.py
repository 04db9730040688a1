"""The verbs of a run: status, logs, cancel, retry, gc and parts, while it runs and after."""

import io
import json
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import RunEfface
from fake_worker import FakeWorker
from rich.console import Console
from tiny_campaign import ESD, IMAGES_PER_PROMPT, PROMPTS, UCE

from efface.cluster import run as running
from efface.cluster.campaign.spec import read_campaign
from efface.cluster.run import Run, execute, open_run, reopen_run
from efface.cluster.storage import under_way
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.training import TrainingTask
from efface.cluster.workers.worker import Worker
from efface.errors import Stopped
from efface.eval.judging.image_table import read_table

IMAGES = PROMPTS * IMAGES_PER_PROMPT
CampaignFile = Callable[..., Path]


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Run:
    """A finished campaign of one UCE job in a folder that the test may spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return reopen_run(tmp_path / "run")


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*given: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(running, "LocalExecutor", start)


def test_a_job_given_up_alone_is_left_out_until_it_is_retried(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    root, file = tmp_path / "run", campaign_file(methods=[UCE, ESD])
    uce, esd = open_run(read_campaign(file), root).plan.jobs
    result = efface("cancel", root, "esd")
    assert (
        result.code == 0
        and result.out == f"{esd.folder} is given up; `efface retry {root} {esd.id}` takes it up again\n"
    )

    result = efface("run", file, "--out", root, "--workers", 0)
    assert result.code == 1 and "cancelled" in result.out
    assert set(read_table(root / "table.parquet")["method"].to_pylist()) == {"base", "uce"}
    report = json.loads(efface("status", root, "--json").out)
    assert report["jobs"] == {"all": 2, "done": 1, "failed": 1, "blocked": 0, "left": 0}
    assert [failure["reason"] for failure in report["failures"]] == ["cancelled"]

    assert efface("retry", root, uce.id[:6], "--workers", 0).error_message == f"{root}: job {uce.folder} has not failed"
    result = efface("retry", root, esd.id, "--workers", 0)
    assert result.code == 0 and "esd" in result.out
    assert set(read_table(root / "table.parquet")["method"].to_pylist()) == {"base", "uce", "esd"}


def test_a_job_given_up_while_it_is_trained_ends_alone(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.cluster.workers.worker import Worker
    from efface.launch.commands.cancel import CancelOptions
    from efface.launch.commands.cancel import run as cancel

    monkeypatch.setattr("efface.cluster.workers.worker.STOP_POLL_INTERVAL", 0.0)
    root = tmp_path / "run"
    really, steps = Worker.on_step, []

    def on_step(self: Worker, task: object, done: int, of_all: int, loss: float) -> None:
        steps.append(done)
        if steps == [1]:
            cancel(CancelOptions(folder=str(root), job="esd"))
        really(self, task, done, of_all, loss)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "on_step", on_step)
    result = efface("run", campaign_file(methods=[ESD, UCE]), "--out", root, "--workers", 0)
    assert result.code == 1 and steps == [1] and "cancelled" in result.out
    assert set(read_table(root / "table.parquet")["method"].to_pylist()) == {"base", "uce"}
    result = efface("retry", root, "--failed", "--workers", 0)
    assert result.code == 0 and steps == [1, 1, 2]


def test_a_finished_job_is_not_given_up(efface: RunEfface, done: Run) -> None:
    (job,) = done.plan.jobs
    assert efface("cancel", done.folder.root, "uce").error_message == (
        f"{done.folder.root}: job {job.folder} is finished already"
    )
    assert done.remaining_tasks.is_empty and not done.remaining_tasks.failed


def test_a_stop_request_where_nobody_works_is_reported_as_such(efface: RunEfface, done: Run) -> None:
    result = efface("cancel", done.folder.root)
    assert result.code == 0 and result.out.startswith("nobody is at work on it")


def test_logs_tell_what_happened_what_was_printed_and_why_it_failed(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    hot = {"method": "esd", "config": {"steps": 4, "learning_rate": 1e30, "rollout_steps": 3}}
    root = tmp_path / "run"
    file = campaign_file(methods=[hot, UCE], seeds=[0, 1])
    assert efface("run", file, "--out", root, "--workers", 0).code == 1
    esd, other, uce, _ = reopen_run(root).plan.jobs
    for name in (esd.id, esd.id[:10], esd.folder):
        result = efface("logs", root, name)
        lines = result.out.splitlines()
        assert result.code == 0 and f"worker 0  training esd: cat ({esd.id}) started" in lines[0]
        assert f"({esd.id}) ended: failed after " in lines[1] and "probably too high" in lines[1]
        assert "step 1 of 4, loss " in result.out and "failed (training): " in result.out
    result = efface("logs", root, uce.id)
    assert f"training uce: cat ({uce.id}) ended: done after" in result.out
    assert f"judging uce: cat, shard 0 ({uce.id}) ended: done after" in result.out
    assert "failed" not in result.out
    assert efface("logs", root, "esd").error_message == (
        f"'esd' could be 2 jobs ({esd.folder}, {other.folder}), give more of it"
    )


def test_without_a_job_logs_tell_all_that_happened_also_where_lines_were_damaged(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    assert efface("run", campaign_file(methods=[UCE]), "--out", root, "--workers", 0).code == 0
    (job,) = reopen_run(root).plan.jobs
    result = efface("logs", root)
    lines = result.out.splitlines()
    assert result.code == 0 and lines[0].endswith("opened") and lines[-1].endswith("closed")
    assert any(f"worker 0  training uce: cat ({job.id}) ended: done after " in line for line in lines)
    assert any(re.search(r"judging the base, shard 0 \([0-9a-f]{16}\) started", line) for line in lines)
    (journal,) = (root / "logs").glob("*.jsonl")
    whole = journal.read_bytes().splitlines(keepends=True)
    for number, key in enumerate((b'"worker"', b'"description"', b'"task"', b'"id"'), 1):
        whole[number] = whole[number].replace(key, key.upper())
    journal.write_bytes(b"".join(whole))
    damaged = efface("logs", root)
    assert damaged.code == 0 and len(damaged.out.splitlines()) == len(lines) - 4
    assert efface("logs", root, job.id).code == efface("status", root).code == 0
    (root / "logs" / "z.jsonl").mkdir()
    os.mkfifo(root / "logs" / "zz.jsonl")
    assert efface("logs", root).out == damaged.out
    assert efface("report", root, "-o", tmp_path / "report.html").code == 0


def test_logs_do_not_follow_a_link_out_of_the_run_folder(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    assert efface("run", campaign_file(methods=[UCE]), "--out", root, "--workers", 0).code == 0
    (job,) = reopen_run(root).plan.jobs
    log = root / "jobs" / job.folder / "log.txt"
    log.unlink(missing_ok=True)
    (tmp_path / "secret").write_text("hunter2")
    log.symlink_to(tmp_path / "secret")
    result = efface("logs", root, job.id)
    assert result.code == 0 and "hunter2" not in result.out


def test_how_far_a_training_is_shows_while_it_is_under_way(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efface.cluster.storage.under_way.INTERVAL", 0.0)
    root, seen = tmp_path / "run", []
    really = Worker.on_step

    def on_step(self: Worker, task: TrainingTask, done: int, steps: int, loss: float) -> None:
        really(self, task, done, steps, loss)
        seen.append(self.folder.log(task.model).read_text().splitlines()[-1].partition(",")[0])

    monkeypatch.setattr(Worker, "on_step", on_step)
    esd = {"method": "esd", "config": {"steps": 3, "rollout_steps": 3}}
    assert efface("run", campaign_file(methods=[esd]), "--out", root, "--workers", 0).code == 0
    assert seen == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]


def test_how_many_images_of_a_shard_are_made_shows_while_it_is_under_way(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are of 5, 5 and 4 images, made 4 at a time: the last has nothing left to say after its first batch."""
    monkeypatch.setattr("efface.cluster.storage.under_way.INTERVAL", 0.0)
    root, seen = tmp_path / "run", []
    really = under_way.note_count

    def note(folder: RunFolder, task: Shard, count: under_way.Count) -> None:
        really(folder, task, count)
        seen.append((task.describe(), under_way.how_far(folder, task, 60.0)))

    monkeypatch.setattr("efface.cluster.workers.worker.note_count", note)
    assert efface("run", campaign_file(methods=[{"method": "uce"}]), "--out", root, "--workers", 0).code == 0
    shards = {what: far.describe() for what, far in seen if far and what.startswith("judging")}
    assert shards == {
        f"judging {model}, shard {i}": "image 4 of 5" for model in ("the base", "uce: cat") for i in (0, 1)
    }
    assert list(root.rglob("*.progress")) == []


def test_a_part_that_there_is_not_leaves_nothing_behind(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    result = efface("run", campaign_file(methods=[UCE]), "--out", tmp_path / "run", "--part", "5/4")
    assert result.error_message == "--part 5/4: should be 1/4 to 4/4"
    assert not (tmp_path / "run").exists()


def test_a_plan_tells_what_of_each_model_is_left(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    file, root = campaign_file(methods=[UCE]), tmp_path / "run"

    def states() -> list[str]:
        return [model["state"] for model in json.loads(efface("plan", file, "--out", root, "--json").out)["models"]]

    (shards, job) = states()
    assert re.fullmatch(r"[1-9][0-9]* shards? left", shards) and job == "left"
    assert efface("run", file, "--out", root, "--workers", 0).code == 0
    assert states() == ["done", "done"]
    run = reopen_run(root)
    run.folder.record_file(run.plan.shards[run.plan.jobs[0].id][0]).unlink()
    assert states() == ["done", "1 shard left"]


def test_clearing_a_run_says_what_goes_and_nothing_is_done_again(
    efface: RunEfface, done: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = done.folder.root
    (job,) = done.plan.jobs
    efface("gc", root)
    done.folder.checkpoint(job).write_bytes(b"x" * 1234)
    result = efface("gc", root, "--dry-run")
    assert result.code == 0 and "1,234 bytes  checkpoints of finished jobs" in result.out
    assert result.out.splitlines()[-1].endswith("1,234 bytes in all would be removed")
    assert done.folder.checkpoint(job).exists()
    result = efface("gc", root)
    assert (
        result.out.splitlines()[-1].endswith("1,234 bytes in all removed") and not done.folder.checkpoint(job).exists()
    )
    no_work(monkeypatch)
    assert efface("run", done.folder.campaign, "--out", root, "--workers", 0).code == 0


def test_parts_of_a_run_and_then_the_run(
    efface: RunEfface, campaign_file: CampaignFile, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, file = tmp_path / "run", campaign_file(methods=[UCE])
    for part in ("2/2", "1/2"):
        assert efface("run", file, "--out", root, "--part", part).code == 0
        assert not (root / "table.parquet").exists()
    no_work(monkeypatch)
    result = efface("run", file, "--out", root, "--workers", 0)
    assert result.code == 0 and "uce" in result.out
    assert (root / "table.parquet").read_bytes() == (finished / "table.parquet").read_bytes()


class Slow(FakeWorker):
    job_seconds = 600.0


def _drive(file: Path, root: Path) -> None:
    try:
        execute(open_run(read_campaign(file), root), 0, None, Console(file=io.StringIO()), Slow)
    except Stopped:
        os._exit(130)


@pytest.fixture
def at_work(campaign_file: CampaignFile, tmp_path: Path) -> Iterator[multiprocessing.process.BaseProcess]:
    """Another process that works on the run in `tmp_path / "run"`, and would for an hour."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_drive, args=(campaign_file(methods=[ESD]), tmp_path / "run"), daemon=True)
    process.start()
    end = time.monotonic() + 60
    while not [1 for p in tmp_path.glob("run/logs/*") if '"task":"training"' in p.read_text()]:
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.05)
    yield process
    process.kill()
    process.join()


def test_while_a_run_is_at_work(
    efface: RunEfface, at_work: multiprocessing.process.BaseProcess, campaign_file: CampaignFile, tmp_path: Path
) -> None:
    root, driver = tmp_path / "run", f"(process {at_work.pid})"
    result = efface("status", root)
    assert result.code == 0
    first, second, third = result.out.splitlines()
    assert first.startswith(f"tiny: jobs 0/1, images 0/{2 * IMAGES}")
    assert driver in second and second.endswith("is at work")
    assert re.fullmatch(r"  worker 0  training esd: cat \([0-9a-f]{16}\)  since [0-9:]{8} UTC", third)
    report = json.loads(efface("status", root, "--json").out)
    assert driver in report["driver"] and len(report["running"]) == 1 and report["jobs"]["left"] == 1

    for command in (["run", campaign_file(methods=[ESD]), "--out", root, "--workers", 0], ["gc", root]):
        error_message = efface(*command).error_message
        assert error_message.startswith(f"{root}: a driver on ") and f"{driver} is at work on this run" in error_message

    result = efface("cancel", root)
    assert result.code == 0 and f"{driver} has been asked to stop" in result.out


def test_a_run_that_is_cancelled_from_elsewhere_saves_its_work(
    efface: RunEfface, campaign_file: CampaignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "job_seconds", 6.0)
    context = multiprocessing.get_context("fork")
    root = tmp_path / "run"
    process = context.Process(target=_drive, args=(campaign_file(methods=[ESD]), root), daemon=True)
    process.start()
    end = time.monotonic() + 60
    while not [1 for p in root.glob("logs/*") if '"task":"training"' in p.read_text()]:
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.05)
    efface("cancel", root)
    process.join(60)
    assert process.exitcode == 130
    assert list(root.glob("jobs/*/checkpoint.safetensors")) and not list(root.glob("jobs/*/failure.json"))
    assert "nobody is at work on it" in efface("status", root).out
