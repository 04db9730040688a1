"""The lease: of several drivers on one run folder one works, and it is known when that one is gone."""

import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
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
from efface.cluster.storage import process as processes
from efface.cluster.storage.lease import Lease, active_driver, check_shared, held_lease
from efface.cluster.storage.process import this_process
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.errors import LocationError, StorageError, UserError
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
    driver = this_process() | {key: changes.pop(key) for key in set(changes) & set(this_process())}
    content = {"id": "forged", "driver": driver, "heartbeat": 1, "released": False, **changes}
    write_atomic(root / "leases" / f"{number:08d}.json", json.dumps(content).encode())


def test_a_lease_is_held_in_the_block_and_released_after_it(root: Path) -> None:
    assert active_driver(root) is None
    with Lease(root, **QUICK) as lease:
        assert files(root) == ["00000001.json"] and last(root)["driver"]["pid"] == os.getpid()
        message = active_driver(root)
        assert message and f"process {os.getpid()}" in message and this_process()["host"] in message
    assert lease.lost is None and last(root)["released"] and active_driver(root) is None


def test_a_released_lease_is_taken_at_once_and_old_ones_are_cleared_away(root: Path) -> None:
    start = time.monotonic()
    for _ in range(7):
        with Lease(root):
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
    assert str(root) in sentence and f"process {os.getpid()}" in sentence and this_process()["host"] in sentence
    assert "`efface status`" in sentence and "`efface cancel`" in sentence and "\n" not in sentence


def test_the_heartbeat_counts_up_while_the_lease_is_held(root: Path) -> None:
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
    """A process that takes the lease at the first message, answers `held` or why not, and ends at the second."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=_hold, args=(there, root), daemon=True)
    process.start()
    return process, here


def test_of_eight_drivers_that_start_at_once_one_works_and_the_others_name_it(tmp_path: Path) -> None:
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
    forge(root, started="1")
    assert active_driver(root) is None
    with Lease(root):
        assert files(root)[-1] == "00000002.json"


def test_a_process_of_another_boot_is_not_looked_for_on_this_one(root: Path) -> None:
    forge(root, boot="another", pid=2**22 + 1)
    assert active_driver(root)
    start = time.monotonic()
    with Lease(root, **QUICK):
        assert time.monotonic() - start >= QUICK["heartbeat_timeout"]


def test_a_driver_elsewhere_whose_heartbeat_stands_still_is_taken_for_dead_after_the_timeout(root: Path) -> None:
    forge(root, host="elsewhere")
    assert active_driver(root) == f"a driver on elsewhere (process {os.getpid()})"
    start = time.monotonic()
    with Lease(root, **QUICK):
        assert time.monotonic() - start >= QUICK["heartbeat_timeout"]
        assert last(root)["driver"]["host"] != "elsewhere"


def _beat(root: Path, changes: dict[str, Any]) -> None:
    for heartbeat in range(2, 2000):
        forge(root, heartbeat=heartbeat, **changes)
        time.sleep(0.02)


GONE_HERE = 2**22 + 1
"""A process id that no process has."""


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "elsewhere"},
        {"namespaces": "pid:[4026532001] time:[4026531834]", "pid": GONE_HERE},
        {"namespaces": "pid:[4026531836] time:[4026532002]", "started": "1"},
        {"namespaces": "", "pid": GONE_HERE},
        {"boot": "", "pid": GONE_HERE},
    ],
    ids=["another host", "another container", "another clock", "unknown container", "unknown boot"],
)
def test_a_driver_whose_heartbeat_moves_is_left_alone_whatever_the_process_table_says(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    forge(tmp_path, **changes)
    assert active_driver(tmp_path)
    other = FORK.Process(target=_beat, args=(tmp_path, changes), daemon=True)
    other.start()
    try:
        with (
            pytest.raises(UserError, match="is at work on this run"),
            Lease(tmp_path, heartbeat=0.02, heartbeat_timeout=5),
        ):
            raise AssertionError("two hold it")
    finally:
        other.kill()
        other.join()


HOLD = """
import sys
from pathlib import Path
from efface.cluster.storage.lease import Lease

with Lease(Path(sys.argv[1]), heartbeat=0.1):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("own_proc", [True, False])
def test_a_driver_in_another_container_of_this_host_is_left_alone(own_proc: bool, tmp_path: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", *(["--mount-proc"] if own_proc else [])]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs root, for a process namespace of its own")
    command = [*unshare, sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "held\n"
        assert last(tmp_path)["driver"]["host"] == this_process()["host"]
        assert last(tmp_path)["driver"]["boot"] == this_process()["boot"]
        with pytest.raises(UserError, match="is at work on this run"), Lease(tmp_path, heartbeat_timeout=20):
            raise AssertionError("two hold it")
        other.stdin.write("end\n")


def test_a_process_that_may_not_be_looked_at_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(tmp_path, pid=1, started="1")  # another user's, where /proc hides those

    def not_permitted(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    really = processes._start_time
    monkeypatch.setattr(os, "kill", not_permitted)
    monkeypatch.setattr(processes, "_start_time", lambda pid: None if pid == "1" else really(pid))
    assert active_driver(tmp_path)
    start = time.monotonic()
    with Lease(tmp_path, **QUICK):
        assert time.monotonic() - start >= QUICK["heartbeat_timeout"]


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
    "content", [b"", b"{", b"\xff", b"[]", b"null", b'{"driver": {}}', b'{"driver": 3, "heartbeat": 1}', b"{}"]
)
def test_a_damaged_lease_stops_nobody_for_long_and_no_number_is_used_twice(content: bytes, root: Path) -> None:
    (root / "leases").mkdir(parents=True)
    (root / "leases" / "00000005.json").write_bytes(content)
    (root / "leases" / "notes.txt").write_bytes(b"not a lease")
    assert active_driver(root) is None
    with Lease(root, **QUICK):
        assert "00000006.json" in files(root)


def test_a_lease_that_is_damaged_while_its_driver_works_is_written_again_and_respected(root: Path) -> None:
    with Lease(root, heartbeat=0.3) as lease:
        (root / "leases" / "00000001.json").write_bytes(b"")
        with pytest.raises(UserError, match=f"process {os.getpid()}.*is at work"), Lease(root, heartbeat_timeout=10):
            raise AssertionError("two hold it")
    assert lease.lost is None


def test_a_link_to_nothing_among_the_leases_holds_nobody_up_for_ever(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "00000005.json").symlink_to(tmp_path / "nowhere")
    with Lease(tmp_path, **QUICK):
        assert files(tmp_path)[-1] == "00000006.json"


@pytest.mark.parametrize(
    "make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["a file", "a dangling link"]
)
def test_leases_that_are_no_folder_are_a_mistake_described_in_one_sentence(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "leases")
    with pytest.raises(LocationError, match=r"leases is not a folder"), Lease(tmp_path, **QUICK):
        raise AssertionError("held")


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_one_of_eight_drivers_works_too(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)  # in the drivers too, which are forked from here
    drivers = [driver(tmp_path) for _ in range(8)]
    for _, pipe in drivers:
        pipe.send("go")
    assert [pipe.recv() for _, pipe in drivers].count("held") == 1
    for process, pipe in drivers:
        pipe.send("end")
        process.join()


def test_a_store_that_loses_its_answer_to_the_creation_does_not_make_a_driver_refuse_itself(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = leases.create_exclusive
    answers: list[Callable[[], bool]] = [lambda: False]

    def create(path: Path, data: bytes) -> bool:
        assert really(path, data)
        return answers.pop()()

    monkeypatch.setattr(leases, "create_exclusive", create)
    with Lease(root, **QUICK):
        assert files(root) == ["00000001.json"]

    def away() -> bool:
        raise StorageError("the connection was reset")

    answers.append(away)
    with Lease(root, **QUICK):
        assert files(root)[-1] == "00000002.json"


def test_a_file_that_two_drivers_are_both_said_to_have_created_is_whose_content_it_has(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_exclusive(path: Path, data: bytes) -> bool:
        forge(root, 1, host="elsewhere")  # the other one's write came last
        return True

    monkeypatch.setattr(leases, "create_exclusive", not_exclusive)
    other = FORK.Process(target=_beat, args=(root, {"host": "elsewhere"}), daemon=True)
    if isinstance(root, Path):  # a store in memory is not shared
        other.start()
        with pytest.raises(UserError, match="elsewhere"), Lease(root, heartbeat=0.02, heartbeat_timeout=5):
            raise AssertionError("two hold it")
        other.kill()
        other.join()


def test_a_worker_sees_the_run_folder_of_its_driver_by_the_lease(root: Path) -> None:
    with Lease(root, **QUICK) as lease:
        assert held_lease(root) == lease.id
        check_shared(root, lease.id, timeout=0.1)
    assert held_lease(root) is None
    check_shared(root, None, timeout=0.1)  # work without a lease is in the driver's own process


@pytest.mark.parametrize("there", [False, True])
def test_a_worker_that_sees_another_folder_says_so(there: bool, root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if there:
        forge(elsewhere, 3)
    with Lease(root, **QUICK) as lease, pytest.raises(UserError, match="does not see the driver's run folder"):
        check_shared(elsewhere, lease.id, timeout=0.1)


def test_a_worker_waits_until_its_node_sees_a_new_file(tmp_path: Path) -> None:
    cached, start = tmp_path / "cached", time.monotonic()

    def appear() -> None:
        time.sleep(0.3)
        forge(cached, 1, id="of the driver")

    thread = threading.Thread(target=appear)
    thread.start()
    check_shared(cached, "of the driver", timeout=20)
    assert time.monotonic() - start >= 0.3
    thread.join()


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


def test_a_run_that_another_driver_works_on_is_not_started(run: Run) -> None:
    with Lease(run.folder.root), pytest.raises(UserError, match="is at work on this run"):
        run_here(run)
    assert not (run.folder.root / "jobs").exists() and len(run.remaining_tasks.trainings) == 2


def test_a_driver_that_loses_its_lease_stops_and_fails_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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
