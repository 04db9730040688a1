"""Looking at a run changes nothing; reporting finds all damage; repairing withdraws what is damaged, and only that."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from efface.cluster.campaign.spec import Campaign
from efface.cluster.collect_results import DamagedOutputs, collect_results
from efface.cluster.run import Run, execute, open_run, reopen_run, worker_context
from efface.cluster.run_summary import summarize
from efface.cluster.storage.opening import FORMAT
from efface.cluster.storage.repair import withdraw_damaged
from efface.cluster.tasks.calibration import CALIBRATION
from efface.cluster.tasks.judging import IMAGES, VERDICTS
from efface.cluster.tasks.retry_rules import Next
from efface.cluster.tasks.task import Task
from efface.cluster.workers.worker import Worker
from efface.errors import UserError


@pytest.fixture
def done(campaign: Callable[..., Campaign], tmp_path: Path, finished: Path) -> Run:
    """A finished campaign in a folder that the test may spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return open_run(campaign(), tmp_path / "run")


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All there is in a folder, and when it was written."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def outputs_of(run: Run) -> dict[str, tuple[Task, Path]]:
    """An output of each kind, and the task that wrote it."""
    folder, training = run.folder, run.plan.trainings[0]
    shard, calibration = run.plan.shards[training.id][0], run.plan.calibrations[0]
    return {
        "verdicts": (shard, folder.output(shard, VERDICTS)),
        "images": (shard, folder.output(shard, IMAGES)),
        "delta": (training, folder.delta(training.model)),
        "calibration": (calibration, folder.output(calibration, CALIBRATION)),
    }


def rewrite(path: Path, data: bytes) -> None:
    """Change a file, which stays as old as it was: no look at its time tells."""
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))


KINDS = ["verdicts", "images", "delta", "calibration"]


@pytest.mark.parametrize("what", KINDS)
def test_an_output_of_another_size_is_not_done_whatever_its_time_says(what: str, done: Run) -> None:
    task, path = outputs_of(done)[what]
    rewrite(path, path.read_bytes()[:-1])
    assert done.folder.record(task) is None and task in done.remaining_tasks.tasks
    assert len(done.remaining_tasks.tasks) == 1


@pytest.mark.parametrize("newer", [True, False])
@pytest.mark.parametrize("what", KINDS)
def test_looking_at_a_damaged_run_changes_nothing(what: str, newer: bool, done: Run) -> None:
    task, path = outputs_of(done)[what]
    flip_a_bit(path)
    if newer:
        path.touch()
    before = state(done.folder.root)
    assert not done.folder.is_intact(task)
    assert (done.folder.record(task) is None) == newer
    assert (task in done.remaining_tasks.tasks) == newer
    summarize(done.plan, done.folder)
    reopen_run(done.folder.root)
    assert state(done.folder.root) == before


@pytest.mark.parametrize("what", ["verdicts", "images", "calibration"])
def test_results_are_not_collected_from_damaged_outputs_and_nothing_is_written(what: str, done: Run) -> None:
    task, path = outputs_of(done)[what]
    flip_a_bit(path)
    before = state(done.folder.root)
    with pytest.raises(DamagedOutputs) as found:
        collect_results(done.plan, done.folder)
    assert task in found.value.tasks and state(done.folder.root) == before


def test_repairing_withdraws_the_records_of_what_is_damaged_and_no_others(done: Run) -> None:
    shard, verdicts = outputs_of(done)["verdicts"]
    calibration, path = outputs_of(done)["calibration"]
    flip_a_bit(verdicts)
    flip_a_bit(path)
    before = state(done.folder.root)
    assert withdraw_damaged(done.folder, done.plan.tasks) == [calibration, shard]
    gone = before.keys() - state(done.folder.root).keys()
    assert gone == {done.folder.record_file(shard), done.folder.record_file(calibration)}
    assert done.remaining_tasks.tasks == [calibration, shard]


@pytest.mark.parametrize("what", ["verdicts", "images", "calibration"])
def test_a_finished_run_with_damage_that_only_hashes_show_is_made_whole_again(
    what: str, done: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, path = outputs_of(done)[what]
    written = path.read_bytes()
    flip_a_bit(path)
    given: list[Task] = []
    really = Worker.run
    monkeypatch.setattr(Worker, "run", lambda worker, task: given.append(task) or really(worker, task))
    execute(done, 0, None, Console(file=io.StringIO()))
    assert given == [task] and path.read_bytes() == written


def test_a_worker_that_meets_a_damaged_delta_says_that_it_has_to_be_made_again(done: Run) -> None:
    training, path = outputs_of(done)["delta"]
    shard = done.plan.shards[training.id][0]
    done.folder.withdraw(done.folder.record_file(shard))
    flip_a_bit(path)
    outcome = Worker(worker_context(done)).run(shard)
    assert outcome.next is Next.REDO_INPUT and str(path) in outcome.reason
    assert done.remaining_tasks.tasks == [training, shard]


# the sign of a run folder


def test_a_run_folder_has_a_sign_with_the_version_of_its_format(done: Run) -> None:
    assert f'"format": {FORMAT}' in done.folder.sign.read_text()


def test_a_folder_of_an_earlier_version_is_refused_in_a_sentence_and_left_as_it_is(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    root = tmp_path / "old"
    (root / "jobs" / "uce-cat-0123456789abcdef").mkdir(parents=True)
    (root / "jobs" / "uce-cat-0123456789abcdef" / "record.json").write_text('{"id": "0123456789abcdef"}')
    (root / "campaign.yaml").write_text("name: tiny\nbase: miniature\nmethods:\n- method: uce\n")
    before = state(root)
    for use in (lambda: reopen_run(root), lambda: open_run(campaign(), root)):
        with pytest.raises(UserError) as refused:
            use()
        message = str(refused.value)
        assert message.startswith(f"{root}: is a run folder of format 1, and this efface")
        assert message.endswith("or start it again in another folder") and "\n" not in message
    assert state(root) == before


def test_a_folder_of_a_later_version_is_refused(done: Run) -> None:
    done.folder.sign.write_text('{"format": 3}')
    with pytest.raises(UserError, match="is a run folder of format 3"):
        reopen_run(done.folder.root)


def test_without_its_sign_a_folder_is_no_run_folder_of_this_version(done: Run) -> None:
    done.folder.sign.unlink()
    with pytest.raises(UserError, match="is a run folder of format 1"):
        reopen_run(done.folder.root)
