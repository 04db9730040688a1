"""Clearing a run folder: what goes is what no record names, so that nothing is ever done again for it."""

import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from efface.cluster import run as running
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run
from efface.cluster.storage.gc import PARTIAL_FILE_AGE, collect
from efface.cluster.storage.lease import Lease
from efface.errors import UserError


@pytest.fixture
def done(campaign: Callable[..., Campaign], tmp_path: Path, finished: Path) -> Run:
    """A finished campaign in a folder that the test may spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return open_run(campaign(), tmp_path / "run")


def files(root: Path) -> dict[str, bytes]:
    """All of a run folder but who held its lease."""
    kept = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "leases")
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


def litter(run: Run) -> dict[str, int]:
    """Put in all that is to be removed; what it is called, and bytes."""
    root, (uce, esd) = run.folder.root, run.plan.jobs
    old = time.time() - 2 * PARTIAL_FILE_AGE
    for size, name in ((10, f"jobs/{esd.folder}/.delta.x1y2z3"), (20, f"evaluations/{uce.folder}/.00000.json.abc")):
        (root / name).write_bytes(b"x" * size)
        os.utime(root / name, (old, old))
    (root / "jobs" / "esd-dog-0123456789abcdef").mkdir()
    (root / "jobs" / "esd-dog-0123456789abcdef" / "checkpoint.safetensors").write_bytes(b"x" * 200)
    run.folder.checkpoint(esd).write_bytes(b"x" * 1000)
    run.folder.cache.mkdir(exist_ok=True)
    (run.folder.cache / "anchors.bin").write_bytes(b"x" * 10_000)
    return {
        "half-written files": 30,
        "unfinished jobs that this campaign does not ask for": 200,
        "checkpoints of finished jobs": 1000,
        "training data of finished jobs": 10_000,
    }


def test_what_is_not_needed_goes_and_everything_else_stays_byte_for_byte(
    done: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = collect(done)
    before = files(done.folder.root)
    assert set(clear) <= {"training data of finished jobs"}
    expected = litter(done)
    assert collect(done) == expected
    assert files(done.folder.root) == before and collect(done) == {}

    def start(*given: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(running, "LocalExecutor", start)
    execute(done, 0, None, Console(file=io.StringIO()))


def test_finished_work_of_another_plan_and_files_that_may_be_in_the_making_stay(done: Run) -> None:
    collect(done)
    other = done.folder.root / "jobs" / "esd-dog-0123456789abcdef"
    other.mkdir()
    for name in ("record.json", "delta.safetensors", ".delta.safetensors.x1y2z3"):
        (other / name).write_bytes(b"x")
    before = files(done.folder.root)
    assert collect(done) == {} and files(done.folder.root) == before


def test_a_dry_run_says_the_same_and_removes_nothing(done: Run) -> None:
    collect(done)
    expected = litter(done)
    before = files(done.folder.root)
    assert collect(done, dry_run=True) == expected
    assert files(done.folder.root) == before


def test_what_an_unfinished_job_will_take_up_stays(done: Run) -> None:
    collect(done)
    litter(done)
    esd = done.plan.jobs[1]
    (done.folder.job(esd) / "record.json").unlink()
    removed = collect(done)
    assert "checkpoints of finished jobs" not in removed and "training data of finished jobs" not in removed
    assert done.folder.checkpoint(esd).is_file() and (done.folder.cache / "anchors.bin").is_file()


def test_a_failure_stays_known(done: Run) -> None:
    esd = done.plan.jobs[1]
    (done.folder.job(esd) / "record.json").unlink()
    done.folder.fail(esd, "training", "the loss is nan", "log")
    done.folder.log(esd).write_text("step 1\n")
    collect(done)
    assert done.folder.failure(esd) and done.folder.log(esd).read_text() == "step 1\n"


def test_nothing_is_removed_while_somebody_works_on_the_run(done: Run) -> None:
    litter(done)
    before = files(done.folder.root)
    with Lease(done.folder.root), pytest.raises(UserError, match="is at work on this run"):
        collect(done)
    assert files(done.folder.root) == before
