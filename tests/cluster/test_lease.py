"""The lease: of many drivers on one run folder one works, and it is known when that one is no more."""

import io
import json
import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from fake_worker import FakeWorker
from rich.console import Console

from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run
from efface.cluster.storage import lease as leases
from efface.cluster.storage.lease import Lease, active_driver
from efface.cluster.tasks.task import Outcome, Task
from efface.cluster.tasks.training import TrainingTask
from efface.errors import StorageError, UserError
from efface.files import as_path, write_atomic

FORK = multiprocessing.get_context("fork")
QUICK = {"heartbeat": 0.02, "heartbeat_timeout": 0.3}


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run folder, on a disk and in an object store."""
    return tmp_path / "run" if request.param == "disk" else as_path(f"memory://{uuid.uuid4().hex}/run")


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "leases").iterdir())


def last(root: Path) -> dict[str, Any]:
    content = json.loads((root / "leases" / files(root)[-1]).read_bytes())
    assert isinstance(content, dict)
    return content


def forge(root: Path, number: int = 1, **changes: Any) -> None:
    """The lease of a driver like this one, but for what is changed of its process, and of its lease."""
    driver = leases._this_process() | {key: changes.pop(key) for key in set(changes) & set(leases._this_process())}
    content = {"driver": driver, "heartbeat": 1, "released": False, **changes}
    write_atomic(root / "leases" / f"{number:08d}.json", json.dumps(content).encode())


def test_a_lease_is_held_in_the_block_and_released_after_it(root: Path) -> None:
    assert active_driver(root) is None
    with Lease(root, **QUICK) as lease:
        assert files(root) == ["00000001.json"] and last(root)["driver"]["pid"] == os.getpid()
        message = active_driver(root)
        assert message and f"process {os.getpid()}" in message and leases._this_process()["host"] in message
    assert lease.lost is None and last(root)["released"] and active_driver(root) is None


def test_a_released_lease_is_taken_at_once_and_old_ones_are_cleared_away(root: Path) -> None:
    start = time.monotonic()
    for _ in range(7):
        with Lease(root):  # with the patience of earnest
            pass
    assert files(root) == ["00000007.json"] and time.monotonic() - start < 20


def test_the_lease_is_released_when_the_work_raises(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lease(root, **QUICK):
        raise ZeroDivisionError
    assert last(root)["released"]


def test_a_living_driver_of_this_machine_is_left_alone_and_named(root: Path) -> None:
    with Lease(root, **QUICK), pytest.raises(UserError) as message, Lease(root):
        raise AssertionError("two hold it")
    sentence = str(message.value)
    assert str(root) in sentence and f"process {os.getpid()}" in sentence and leases._this_process()["host"] in sentence
    assert "`efface status`" in sentence and "`efface cancel`" in sentence and "\n" not in sentence


def test_a_beat_is_counted_up_while_it_is_held(root: Path) -> None:
    with Lease(root, **QUICK):
        deadline = time.monotonic() + 10
        while last(root)["heartbeat"] < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert last(root)["heartbeat"] >= 3


def _hold(start: Connection, root: Path) -> None:
    start.recv()
    try:
        with Lease(root):
            start.send("held")
            start.recv()
    except UserError as error:
        start.send(str(error))
        start.recv()


def driver(root: Path) -> tuple[Any, Connection]:
    """A process that takes the lease when it is told to, answers `held` or why not, and ends when it is told to."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=_hold, args=(there, root), daemon=True)
    process.start()
    return process, here


def test_of_eight_drivers_that_start_at_once_one_works_and_the_others_are_told_which(tmp_path: Path) -> None:
    for attempt in range(3):
        root = tmp_path / str(attempt)
        drivers = [driver(root) for _ in range(8)]
        for _, pipe in drivers:
            pipe.send("go")
        answers = [pipe.recv() for _, pipe in drivers]
        (holder,) = (process.pid for (process, _), answer in zip(drivers, answers, strict=True) if answer == "held")
        refused = [answer for answer in answers if answer != "held"]
        assert len(refused) == 7 and all(f"(process {holder}) is at work on this run" in message for message in refused)
        for process, pipe in drivers:
            pipe.send("end")
            process.join()


def test_eight_drivers_after_a_dead_one_are_one_too(tmp_path: Path) -> None:
    for attempt in range(3):
        root = tmp_path / str(attempt)
        forge(root, 41, pid=2**22 + 1)
        drivers = [driver(root) for _ in range(8)]
        for _, pipe in drivers:
            pipe.send("go")
        assert [pipe.recv() for _, pipe in drivers].count("held") == 1
        assert files(root) == ["00000042.json"]
        for process, pipe in drivers:
            pipe.send("end")
            process.join()


def test_a_driver_killed_on_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    process, pipe = driver(tmp_path)
    pipe.send("go")
    assert pipe.recv() == "held"
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while active_driver(tmp_path) and time.monotonic() < deadline:  # a process not yet waited for is gone all the same
        time.sleep(0.01)
    start = time.monotonic()
    with Lease(tmp_path):
        assert last(tmp_path)["driver"]["pid"] == os.getpid()
    assert time.monotonic() - start < leases.HEARTBEAT_TIMEOUT / 4
    process.join()


def test_a_later_process_with_the_number_of_the_dead_one_is_not_taken_for_it(root: Path) -> None:
    forge(root, started=1.0)
    assert active_driver(root) is None
    with Lease(root):
        assert files(root)[-1] == "00000002.json"


def test_a_process_of_another_boot_is_not_looked_for_on_this_one(root: Path) -> None:
    forge(root, boot="another", pid=2**22 + 1)
    assert active_driver(root)
    start = time.monotonic()
    with Lease(root, **QUICK):
        assert time.monotonic() - start >= QUICK["heartbeat_timeout"]


def test_a_driver_elsewhere_whose_beat_stands_still_is_taken_for_dead_after_the_patience(root: Path) -> None:
    forge(root, host="elsewhere")
    assert active_driver(root) == f"a driver on elsewhere (process {os.getpid()})"
    start = time.monotonic()
    with Lease(root, **QUICK):
        assert time.monotonic() - start >= QUICK["heartbeat_timeout"]
        assert last(root)["driver"]["host"] != "elsewhere"


def _beat(root: Path) -> None:
    for heartbeat in range(2, 2000):
        forge(root, host="elsewhere", heartbeat=heartbeat)
        time.sleep(0.02)


def test_a_driver_elsewhere_whose_beat_moves_is_left_alone(tmp_path: Path) -> None:
    forge(tmp_path, host="elsewhere")
    other = FORK.Process(target=_beat, args=(tmp_path,), daemon=True)
    other.start()
    try:
        with (
            pytest.raises(UserError, match="a driver on elsewhere"),
            Lease(tmp_path, heartbeat=0.02, heartbeat_timeout=5),
        ):
            raise AssertionError("two hold it")
    finally:
        other.kill()
        other.join()


def test_clocks_that_jump_do_not_matter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (next(jumps) % 3))
    forge(root, host="elsewhere")
    start = time.monotonic()
    with Lease(root, **QUICK) as lease:
        assert time.monotonic() - start >= QUICK["heartbeat_timeout"]
        heartbeat = last(root)["heartbeat"]
        while last(root)["heartbeat"] < heartbeat + 2:
            time.sleep(0.02)
        with pytest.raises(UserError, match="is at work"), Lease(root, **QUICK):
            raise AssertionError("two hold it")
    assert lease.lost is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"null", b'{"driver": {}}', b'{"driver": 3, "beat": 1}', b"{}"]
)
def test_a_damaged_lease_holds_nobody_off_and_no_number_is_used_twice(content: bytes, root: Path) -> None:
    (root / "leases").mkdir(parents=True)
    (root / "leases" / "00000005.json").write_bytes(content)
    (root / "leases" / "notes.txt").write_bytes(b"not a lease")
    assert active_driver(root) is None
    with Lease(root, **QUICK):
        assert "00000006.json" in files(root)


def test_who_finds_a_higher_number_has_lost_the_lease_and_leaves_it_alone(root: Path) -> None:
    with Lease(root, **QUICK) as lease:
        forge(root, 2, host="elsewhere")
        deadline = time.monotonic() + 10
        while lease.lost is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lease.lost == "another driver has taken this run over"
        before = last(root)
    assert last(root) == before and not last(root)["released"]


def test_a_store_away_for_a_moment_loses_no_lease_and_one_away_for_long_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away: list[bool] = []
    really = leases.write_json

    def write(path: Path, value: Any) -> None:
        if away:
            raise StorageError("the store was away")
        really(path, value)

    monkeypatch.setattr(leases, "write_json", write)
    with Lease(tmp_path, heartbeat=0.02, heartbeat_timeout=2) as lease:
        away.append(True)
        time.sleep(0.3)
        away.clear()
        heartbeat = last(tmp_path)["heartbeat"]
        deadline = time.monotonic() + 10
        while last(tmp_path)["heartbeat"] <= heartbeat and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lease.lost is None and last(tmp_path)["heartbeat"] > heartbeat
        away.append(True)
        deadline = time.monotonic() + 10
        while lease.lost is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lease.lost == "the store was away"


def run_here(run: Run, worker: type[FakeWorker] = FakeWorker) -> None:
    execute(run, 0, None, Console(file=io.StringIO()), worker)


@pytest.fixture
def run(campaign: Callable[..., Campaign], tmp_path: Path) -> Run:
    return open_run(campaign(), tmp_path / "run")


def test_a_run_that_another_driver_works_on_is_not_begun(run: Run) -> None:
    with Lease(run.folder.root), pytest.raises(UserError, match="is at work on this run"):
        run_here(run)
    assert not (run.folder.root / "jobs").exists() and len(run.remaining_tasks.trainings) == 2


def test_a_driver_that_loses_its_lease_lays_its_work_down_and_fails_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_INTERVAL", 0.02)
    monkeypatch.setattr(Lease.__init__, "__defaults__", (0.02, 0.3))
    monkeypatch.setattr("efface.cluster.scheduler.dispatch.POLL_INTERVAL", 0.0)

    class Overtaken(FakeWorker):
        shard_seconds = 0.2

        def run(self, task: Task) -> Outcome:
            if isinstance(task, TrainingTask):
                forge(run.folder.root, 2, host="elsewhere")
                time.sleep(0.3)
            return super().run(task)

    with pytest.raises(StorageError, match="another driver has taken this run over"):
        run_here(run, Overtaken)
    left = run.remaining_tasks
    assert left.shards and not left.failed
    assert last(run.folder.root)["driver"]["host"] == "elsewhere"
