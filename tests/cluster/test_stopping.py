"""Stopping a run and going on with it: signals, stop requests from elsewhere, and the same bytes in the end."""

import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_worker import STEPS, FakeWorker, expected
from rich.console import Console
from tiny_campaign import ESD, campaign_dict, write_yaml

from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, execute_part, open_run, reopen_run, worker_context
from efface.cluster.signals import STOP_SIGNALS
from efface.cluster.storage.lease import active_driver
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.cluster.workers.worker import Worker
from efface.config_files import parse
from efface.errors import Stopped
from efface.eval.judging.image_table import read_table

STEPS_OF_ESD = 24
SLOW = {
    "methods": [{**ESD, "config": {**ESD["config"], "steps": STEPS_OF_ESD}}],  # type: ignore[dict-item]
    "limits": {"checkpoint_steps": 1},
}

DRIVER = """
import sys, time
from efface.cluster.workers.worker import Worker
from efface.launch.cli import main

seconds, really = float(sys.argv.pop(1)), Worker.on_step

def slowly(self, *step):
    time.sleep(seconds)
    really(self, *step)

Worker.on_step = slowly
main()
"""


def run_here(run: Run, worker: Any = FakeWorker) -> str:
    console = Console(file=io.StringIO(), width=200)
    execute(run, 0, None, console, worker)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def contents(root: Path) -> dict[str, bytes]:
    kept = (path for path in root.rglob("*") if path.suffix in (".parquet", ".safetensors", ".png"))
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


# with fake workers


@pytest.fixture(autouse=True)
def _terminal() -> Iterator[None]:
    """SIGHUP is not ignored, as it is under `nohup`, and does not end the tests."""
    before = signal.signal(signal.SIGHUP, lambda number, frame: None)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def run(campaign: Callable[..., Campaign], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("efface.cluster.scheduler.dispatch.POLL_INTERVAL", 0.0)
    return open_run(campaign(seeds=[0, 1], limits={"checkpoint_steps": 1}), tmp_path / "run")


def interrupt(folder: RunFolder) -> None:
    signal.raise_signal(signal.SIGINT)


def terminate(folder: RunFolder) -> None:
    signal.raise_signal(signal.SIGTERM)


def hang_up(folder: RunFolder) -> None:
    signal.raise_signal(signal.SIGHUP)


def hang_up_twice(folder: RunFolder) -> None:
    """As the kernel and a shell do at once when a terminal is closed."""
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)


def log_out(folder: RunFolder) -> None:
    """As a session manager does."""
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGHUP)


@pytest.mark.parametrize("ask", [interrupt, terminate, hang_up, hang_up_twice, log_out, RunFolder.request_stop])
def test_a_job_is_stopped_between_two_steps_and_no_step_is_done_twice(
    ask: Callable[[RunFolder], None], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeWorker, "effects", str(tmp_path / "effects"))
    second = run.plan.jobs[1]

    class StopRequested(FakeWorker):
        def _log_effect(self, line: str) -> None:
            super()._log_effect(line)
            if line == f"step {second.id} 7":
                ask(self.folder)

    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    with pytest.raises(Stopped, match="the same command continues from there"):
        run_here(run, StopRequested)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers
    assert run.folder.checkpoint(second).is_file() and active_driver(run.folder.root) is None
    remaining = run.remaining_tasks
    assert TrainingTask(second) in remaining.trainings and len(remaining.trainings) == 3 and not remaining.failed
    run_here(run)
    assert read_table(run.folder.table) == expected(run.plan, worker_context(run))
    done = Counter((tmp_path / "effects").read_text().splitlines())
    assert set(done.values()) == {1} and len(done) == 4 * STEPS + run.plan.shard_count


def test_while_shards_are_judged_the_one_under_way_is_finished(run: Run) -> None:
    class StopRequested(FakeWorker):
        def run(self, task: Task) -> Outcome:
            if not isinstance(task, TrainingTask):
                self.folder.request_stop()
            return super().run(task)

    with pytest.raises(Stopped):
        run_here(run, StopRequested)
    assert not run.remaining_tasks.failed and not run.folder.table.exists()


def test_a_request_of_yesterday_stops_nobody_today(run: Run) -> None:
    run.folder.request_stop()
    run_here(run)
    assert run.remaining_tasks.is_empty


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_when_a_run_starts_stays_ignored(number: signal.Signals, run: Run) -> None:
    class StopRequested(FakeWorker):
        def _log_effect(self, line: str) -> None:
            signal.raise_signal(number)

    before = signal.signal(number, signal.SIG_IGN)  # as `nohup`, and shells for what runs in the background
    try:
        run_here(run, StopRequested)
        assert run.remaining_tasks.is_empty and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_run_whose_terminal_is_gone_is_stopped_all_the_same(run: Run) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    class StopRequested(FakeWorker):
        def _log_effect(self, line: str) -> None:
            console.file = Gone()
            signal.raise_signal(signal.SIGHUP)
            console.file = io.StringIO()

    console = Console(file=io.StringIO())
    with pytest.raises(Stopped):
        execute(run, 0, None, console, StopRequested)
    assert not run.remaining_tasks.failed


def test_a_second_signal_interrupts_at_once(run: Run) -> None:
    class StopRequested(FakeWorker):
        def _log_effect(self, line: str) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on")

    with pytest.raises(KeyboardInterrupt):
        run_here(run, StopRequested)
    assert not run.remaining_tasks.failed and active_driver(run.folder.root) is None
    run_here(run)
    assert read_table(run.folder.table) == expected(run.plan, worker_context(run))


def test_a_part_is_stopped_by_a_request_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.cluster import run as running
    from efface.cluster.workers.local_executor import LocalExecutor

    class StopRequested(FakeWorker):
        def _log_effect(self, line: str) -> None:
            self.folder.request_stop()

    monkeypatch.setattr(
        running,
        "LocalExecutor",
        lambda context, should_stop, worker: LocalExecutor(context, should_stop, StopRequested),
    )
    with pytest.raises(Stopped):
        execute_part(run, 1, 2, Console(file=io.StringIO()))
    assert not run.remaining_tasks.failed and len(list(run.folder.root.glob("jobs/*/checkpoint.safetensors"))) == 1


# the command itself


@pytest.fixture(scope="module")
def undisturbed(campaign_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `SLOW`, executed by a real worker and never stopped. Not to be changed."""
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    run_here(open_run(parse(Campaign, campaign_dict(campaign_inputs, **SLOW), "campaign"), root), Worker)
    return root


@pytest.fixture
def driver(campaign_inputs: Path, tmp_path: Path) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """A function that starts `efface run` on `SLOW`, whose every training step takes so many seconds."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        file = write_yaml(tmp_path / "campaign.yaml", campaign_dict(campaign_inputs, **SLOW))
        command = [sys.executable, "-c", DRIVER, str(seconds), "run", file, "--out", str(tmp_path / "run")]
        started.append(subprocess.Popen([*command, "--workers", "0"], stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 180
    while not what():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def steps_saved(root: Path) -> int:
    """Optimiser steps of the only checkpoint there is: the losses in its safetensors header."""
    for path in root.glob("jobs/*/checkpoint.safetensors"):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return len(json.loads(header["__metadata__"]["efface"])["losses"])
    return 0


def cancel(process: subprocess.Popen[str], root: Path) -> None:
    from efface.launch.commands.cancel import CancelOptions, run

    run(CancelOptions(folder=str(root)))


def send(number: signal.Signals) -> Callable[[subprocess.Popen[str], Path], None]:
    return lambda process, root: process.send_signal(number)


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(send(signal.SIGINT), id="SIGINT", marks=pytest.mark.slow),
        pytest.param(send(signal.SIGTERM), id="SIGTERM"),
        pytest.param(send(signal.SIGHUP), id="SIGHUP", marks=pytest.mark.slow),
        pytest.param(cancel, id="cancel", marks=pytest.mark.slow),
    ],
)
def test_the_command_stops_and_typed_again_continues_to_the_same_bytes(
    stop: Callable[[subprocess.Popen[str], Path], None],
    driver: Callable[[float], subprocess.Popen[str]],
    tmp_path: Path,
    undisturbed: Path,
) -> None:
    root = tmp_path / "run"
    process = driver(0.25)
    wait_for(lambda: steps_saved(root) >= 4, process)
    stop(process, root)
    _, output = process.communicate(timeout=180)
    assert process.returncode == 130, output
    assert "the same command continues from there" in output.splitlines()[-1] and "Traceback" not in output
    run = reopen_run(root)
    (job,) = run.plan.jobs
    assert (
        run.folder.checkpoint(job).is_file()
        and run.remaining_tasks.trainings == [TrainingTask(job)]
        and not run.remaining_tasks.failed
    )
    run_here(run, Worker)
    log = run.folder.log(job).read_text()
    assert f"step {STEPS_OF_ESD} of {STEPS_OF_ESD}" in log and f"step 3 of {STEPS_OF_ESD}" not in log
    assert contents(root) == contents(undisturbed)


@pytest.mark.slow
def test_a_second_signal_stops_the_command_at_once(
    driver: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = driver(600)
    wait_for(lambda: [1 for path in tmp_path.glob("run/logs/*") if '"task":"training"' in path.read_text()], process)
    time.sleep(5)  # by now it sleeps in its first step, and does not look for a stop request
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in output
    assert active_driver(tmp_path / "run") is None and not reopen_run(tmp_path / "run").remaining_tasks.failed
