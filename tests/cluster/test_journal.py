"""The journal: every event once, in order, whole after a crash, on a disk or on an object store."""

import errno
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from efface.cluster.campaign.plan import Plan
from efface.cluster.storage import journal as module
from efface.cluster.storage.journal import (
    DriverClosed,
    DriverOpened,
    Journal,
    TaskEnded,
    TaskStarted,
    TaskTimer,
    read_journal,
)
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.retry_rules import Outcome
from efface.errors import StorageError

DONE, ERROR = Outcome.done(), Outcome.error("OSError: no route", "Traceback …")


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    return plan()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def bucket() -> RunFolder:
    """A run folder on a store that knows whole objects alone."""
    return RunFolder(f"memory://{uuid.uuid4()}/run")


class Steady:
    """A clock that goes on only when it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Steady:
    steady = Steady()
    monkeypatch.setattr(module, "time", steady)
    return steady


def events(folder: RunFolder) -> list[str]:
    return [event.event for event in read_journal(folder)]


def test_what_happens_to_a_task_is_written_with_its_kind_description_state_and_seconds(
    made: Plan, folder: RunFolder, clock: Steady
) -> None:
    job = made.trainings[0]
    journal = Journal(folder)
    journal.started(3, job)
    clock.now += 2.5
    journal.ended(3, job, ERROR, will_retry=True)
    journal.close()
    opened, started, ended, closed = read_journal(folder)
    about = {"worker": 3, "task": "training", "id": job.id, "model": job.id, "description": "training uce: cat"}
    assert started.model_dump(exclude={"time"}) == {"event": "started", **about}
    recorded = {
        "state": "error",
        "seconds": 2.5,
        "note": "",
        "will_retry": True,
        "reason": ERROR.reason,
        "details": ERROR.details,
    }
    assert ended.model_dump(exclude={"time"}) == {"event": "ended", **about, **recorded}
    assert isinstance(opened, DriverOpened) and opened.process == os.getpid() and isinstance(closed, DriverClosed)


def test_shards_and_calibrations_are_named_too(made: Plan, folder: RunFolder) -> None:
    base, calibration_task = made.models[0], made.calibrations[0]
    journal = Journal(folder)
    journal.started(0, made.shards[base.id][1])
    journal.started(1, calibration_task)
    shard, calibration = list(read_journal(folder))[1:]
    assert isinstance(shard, TaskStarted) and isinstance(calibration, TaskStarted)
    assert (shard.task, shard.description, shard.model) == ("judging", "judging the base, shard 1", base.id)
    assert (calibration.task, calibration.id, calibration.model) == ("calibration", calibration_task.id, None)
    assert calibration.description == f"calibrating judge {calibration_task.judge}"


def test_a_line_is_on_the_disk_as_soon_as_it_is_written(made: Plan, folder: RunFolder) -> None:
    journal = Journal(folder)
    journal.started(0, made.trainings[0])
    assert events(folder) == ["opened", "started"]


def test_half_a_last_line_is_passed_over(made: Plan, folder: RunFolder) -> None:
    journal = Journal(folder)
    journal.started(0, made.trainings[0])
    [file] = folder.logs.iterdir()
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole) - 1):
        file.write_bytes(whole[:end])
        assert events(folder) == ["opened"]


def test_lines_that_are_json_and_no_events_are_passed_over(folder: RunFolder) -> None:
    folder.logs.mkdir(parents=True)
    lines = ["1", "[]", "{}", "null", '{"time": "x"}', "[" * 100_000, '{"time": "x", "event": "opened"}']
    (folder.logs / "a.jsonl").write_text("\n".join(lines))
    assert events(folder) == ["opened"]


def test_drivers_come_one_after_the_other_in_the_order_they_started(folder: RunFolder) -> None:
    for _ in range(3):
        Journal(folder).close()
    files = sorted(path.name for path in folder.logs.iterdir())
    assert len(files) == 3
    times = [event.time for event in read_journal(folder)]
    assert times == sorted(times)
    assert events(folder) == ["opened", "closed"] * 3


def test_a_run_without_a_journal_has_no_events(folder: RunFolder, bucket: RunFolder) -> None:
    assert events(folder) == events(bucket) == []


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        Journal(RunFolder(tmp_path / "run"))


def test_lines_that_a_full_disk_did_not_take_follow_whole_and_in_order(made: Plan, folder: RunFolder) -> None:
    journal = Journal(folder)
    assert isinstance(journal._file, module._Appended)

    class FullDisk:
        """Takes ten bytes, and then no more."""

        def __init__(self, file: module._Appended) -> None:
            self.under, self.room = file._file, 10

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room = 0
            return self.under.write(data[:10])

    disk = journal._file._file
    journal._file._file = FullDisk(journal._file)  # type: ignore[assignment]
    journal.started(0, made.trainings[0])
    assert events(folder) == ["opened"]
    journal._file._file = disk
    journal.ended(0, made.trainings[0], DONE, will_retry=False)
    journal.close()
    assert events(folder) == ["opened", "started", "ended", "closed"]


def test_a_store_is_sent_the_journal_every_half_minute_and_at_the_end(
    made: Plan, bucket: RunFolder, clock: Steady
) -> None:
    journal = Journal(bucket)
    journal.started(0, made.trainings[0])
    journal.tick()
    assert events(bucket) == []
    clock.now += 29
    journal.tick()
    assert events(bucket) == []
    clock.now += 1
    journal.tick()
    assert events(bucket) == ["opened", "started"]
    journal.ended(0, made.trainings[0], DONE, will_retry=False)
    journal.tick()
    assert events(bucket) == ["opened", "started"]
    journal.close()
    assert events(bucket) == ["opened", "started", "ended", "closed"]


def test_on_a_store_a_full_file_is_followed_by_another(
    made: Plan, bucket: RunFolder, clock: Steady, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 1000)
    journal = Journal(bucket)
    written = []
    for number in range(40):
        journal.started(number, made.trainings[0])
        written.append(number)
        clock.now += 30
        journal.tick()
    journal.close()
    files = sorted(bucket.logs.glob("*.jsonl"), key=lambda path: path.name)
    assert len(files) > 5
    assert all(len(file.read_bytes()) < 1000 + 500 for file in files)
    assert [event.worker for event in read_journal(bucket) if isinstance(event, TaskStarted)] == written


def test_a_store_out_of_reach_is_called_again_later(
    made: Plan, bucket: RunFolder, clock: Steady, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(bucket)

    def out_of_reach(path: Path, data: bytes) -> None:
        raise StorageError(f"{path}: cannot be written (out of reach)")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", out_of_reach)
        clock.now += 30
        journal.tick()
    assert events(bucket) == []
    clock.now += 30
    journal.tick()
    assert events(bucket) == ["opened"]


def test_the_time_of_a_task_that_waited_in_line_begins_when_the_one_before_it_ended(made: Plan, clock: Steady) -> None:
    first, second = made.shards[made.models[0].id][:2]
    line = TaskTimer()
    line.started(0, first)
    line.started(0, second)
    clock.now += 4
    assert line.ended(0, first) == 4
    clock.now += 3
    assert line.ended(0, second) == 3
    clock.now += 50
    line.started(0, first)
    clock.now += 1
    assert line.ended(0, first) == 1


def test_a_shard_that_two_workers_do_is_under_way_until_both_have_ended(made: Plan, clock: Steady) -> None:
    shard = made.shards[made.models[0].id][0]
    lines = TaskTimer()
    lines.started(0, shard)
    clock.now += 60
    lines.started(1, shard)
    clock.now += 5
    assert lines.busy == 2
    assert lines.ended(1, shard) == 5
    assert (lines.busy, lines.is_running(shard)) == (1, True)
    assert lines.ended(0, shard) == 65
    assert (lines.busy, lines.is_running(shard)) == (0, False)


def test_every_line_is_json_on_its_own(made: Plan, folder: RunFolder) -> None:
    journal = Journal(folder)
    journal.started(0, made.trainings[0])
    journal.ended(0, made.trainings[0], Outcome.error("line one\nline two\u2028é", "a\r\nb"), will_retry=False)
    journal.close()
    [file] = folder.logs.iterdir()
    lines = file.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line)["event"] for line in lines] == ["opened", "started", "ended", "closed"]


def test_a_run_leaves_a_journal_of_everything_it_did(finished: Path, plan: Callable[..., Plan]) -> None:
    made = plan()
    opened, *recorded, closed = read_journal(RunFolder(finished))
    assert isinstance(opened, DriverOpened) and isinstance(closed, DriverClosed)
    for kind in (TaskStarted, TaskEnded):
        assert sorted(e.id for e in recorded if isinstance(e, kind)) == sorted(task.id for task in made.tasks)
    assert {event.state for event in recorded if isinstance(event, TaskEnded)} == {"done"}
