"""The run folder under fuzz: records and their outputs, failures, leases, journals."""

import json
import tempfile
from contextlib import suppress
from pathlib import Path

from damage import damaged_bytes, damaged_tree, trees
from hypothesis import strategies as st

from efface.cluster.storage.journal import read_journal
from efface.cluster.storage.lease import Lease, active_driver
from efface.cluster.storage.process import this_process
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.calibration import CALIBRATION, CalibrationTask
from efface.cluster.tasks.judging import IMAGES, VERDICTS, Shard
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.files import content_id
from efface.train.job import Job

JOB = Job(
    base="tiny",
    base_id="f" * 64,
    method="uce",
    method_version=1,
    config={},
    concepts=("cat",),
    concept_set="pets",
    concept_set_sha256="0" * 64,
    strategy="single",
    seed=0,
)
MODEL = Model("uce", JOB, JOB.base_id)
SHARD = Shard(MODEL, 0, (), "0123456789abcdef")
CALIBRATION_TASK = CalibrationTask("judge", "fedcba9876543210")
OUTPUT = bytes(range(256))
FACTS = {"label": "uce", "metrics": {"loss": 0.5}}
RECORD_KEYS = ("id", "outputs", "sha256", "bytes", "check", "kind", "seconds", "device", "facts", "label")


def _tasks(folder: Path) -> list[tuple[Task, list[Path]]]:
    """A task of three kinds, and its outputs."""
    run = RunFolder(folder)
    outputs = [
        [run.delta(MODEL)],
        [run.output(SHARD, VERDICTS), run.output(SHARD, IMAGES)],
        [run.output(CALIBRATION_TASK, CALIBRATION)],
    ]
    return list(zip((TrainingTask(MODEL), SHARD, CALIBRATION_TASK), outputs, strict=True))


def _write_outputs(outputs: list[Path]) -> None:
    outputs[0].parent.mkdir(parents=True)
    for output in outputs:
        output.write_bytes(OUTPUT)


def _records() -> list[tuple[Path, bytes]]:
    """Where the record of each task is in a run folder, and what it says."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(3):
            folder = Path(name) / str(number)
            task, outputs = _tasks(folder)[number]
            _write_outputs(outputs)
            RunFolder(folder).finish(task, outputs, seconds=1.5, device="cpu", **FACTS)
            [record] = set(folder.rglob("*.json")) - set(outputs)
            found.append((record.relative_to(folder), record.read_bytes()))
    return found


RECORDS = _records()


def _finished(folder: Path, number: int) -> tuple[RunFolder, Task, Path, list[Path]]:
    """A run folder where a task is done: the task, its record and its outputs."""
    task, outputs = _tasks(folder)[number]
    _write_outputs(outputs)
    where, content = RECORDS[number]
    (folder / where).write_bytes(content)
    return RunFolder(folder), task, folder / where, outputs


@st.composite
def records(draw: st.DrawFn) -> tuple[int, bytes, bool]:
    """Which task's, its record, and whether that carries a right check though it was changed."""
    number = draw(st.integers(0, 2))
    whole = RECORDS[number][1]
    if draw(st.booleans()):
        return number, draw(damaged_bytes(whole)), False
    changed = draw(damaged_tree(json.loads(whole), RECORD_KEYS))
    forged = isinstance(changed, dict) and draw(st.booleans())
    if forged:
        changed = {key: value for key, value in changed.items() if key != "check"}
        with suppress(ValueError):
            changed["check"] = content_id(changed)
    return number, json.dumps(changed).encode(), forged


def check_record(drawn: tuple[int, bytes, bool], folder: Path) -> bool:
    """A damaged record counts as not there, or says what it said before."""
    number, content, forged = drawn
    run, task, path, _ = _finished(folder, number)
    before = run.record(task)
    assert before is not None
    path.write_bytes(content)
    after = run.record(task)
    assert run.records([task]) == ({} if after is None else {task.id: after})
    assert forged or after in (None, before)
    run.is_intact(task)
    return after is not None


outputs = st.tuples(st.integers(0, 2), damaged_bytes(OUTPUT))


def check_output(drawn: tuple[int, bytes], folder: Path) -> bool:
    """A finished task one of whose outputs was changed is never intact."""
    number, content = drawn
    run, task, _, outputs = _finished(folder, number)
    outputs[-1].write_bytes(content)
    same = content == OUTPUT
    assert run.is_intact(task) == (run.record(task) is not None) == same
    return same


JSON_FILES = st.one_of(
    st.binary(max_size=40),
    trees(RECORD_KEYS).map(lambda tree: json.dumps(tree).encode()),
    damaged_bytes(json.dumps({"stage": "training", "reason": "the loss is nan", "details": "log"}).encode()),
    st.sampled_from((b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"", b"\xff\xfe", b'"\\ud800"')),
)


def check_failure(drawn: bytes, folder: Path) -> bool:
    """Any failure.json, or request to stop, is read as one or as none."""
    run = RunFolder(folder)
    path = run.job(MODEL) / "failure.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(drawn)
    (folder / "stop.json").write_bytes(drawn)
    result = run.failure(MODEL)
    assert run.failures([MODEL]) == ({} if result is None else {MODEL.id: result})
    run.stop_request()
    return result is not None


LEASE = {"driver": {"host": "h", "boot": "b", "pid": 1, "started": 1.5}, "heartbeat": 3, "released": False}
LEASE_KEYS = ("driver", "host", "boot", "pid", "started", "heartbeat", "released")


@st.composite
def leases(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A lease as another driver might have left it; and whether it says that it is of this machine."""
    if not draw(st.integers(0, 3)):
        return draw(JSON_FILES), False
    return json.dumps(draw(damaged_tree(LEASE, LEASE_KEYS))).encode(), draw(st.booleans())


def check_lease(drawn: tuple[bytes, bool], folder: Path) -> bool:
    """Whatever lease is there, a driver learns who works, or takes the run over in the end."""
    content, ours = drawn
    if ours:
        content = _as_of_this_machine(content)
    (folder / "leases").mkdir()
    (folder / "leases" / "00000001.json").write_bytes(content)
    result = active_driver(folder)
    with Lease(folder, heartbeat=0.01, heartbeat_timeout=0.002):
        assert active_driver(folder)
    assert active_driver(folder) is None
    return result is not None


def _as_of_this_machine(content: bytes) -> bytes:

    lease, me = json.loads(content), this_process()
    if isinstance(lease, dict) and isinstance(lease.get("driver"), dict):
        lease["driver"] |= {"host": me["host"], "boot": me["boot"]}
    return json.dumps(lease).encode()


JOURNAL = b'{"time": "2026", "event": "opened"}\n{"time": "2026", "event": "closed"}\n'


def check_journal(drawn: bytes, folder: Path) -> bool:
    """Any file is read, line by line; what is no event is passed over."""
    (folder / "logs").mkdir()
    (folder / "logs" / "a.jsonl").write_bytes(drawn)
    events = list(read_journal(RunFolder(folder)))
    assert all(event.event in ("opened", "closed") for event in events)
    return bool(events)


journals = damaged_bytes(JOURNAL) | JSON_FILES
