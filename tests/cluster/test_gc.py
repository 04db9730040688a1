"""Clearing a run folder: only what this run wrote goes, and nothing that would have to be made again."""

import errno
import io
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from efface.cluster import run as running
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run
from efface.cluster.storage import gc
from efface.cluster.storage.gc import PARTIAL_FILE_AGE
from efface.cluster.storage.journal import TaskStarted
from efface.cluster.storage.lease import Lease
from efface.errors import UserError
from efface.launch.cli import main


@pytest.fixture
def done(campaign: Callable[..., Campaign], tmp_path: Path, finished: Path) -> Run:
    """A finished campaign in a folder that the test may spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return open_run(campaign(), tmp_path / "run")


def collect(run: Run, dry_run: bool = False) -> dict[str, int]:
    """Bytes by kind."""
    sizes: Counter[str] = Counter()
    for garbage in gc.collect(run.plan, run.folder, dry_run):
        sizes[garbage.kind] += garbage.bytes
    return dict(sizes)


def files(root: Path) -> dict[str, bytes]:
    """All of a run folder but who held its lease."""
    kept = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "leases")
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


EARLIER = "esd-dog-0123456789abcdef"
"""The folder of a job of an earlier plan."""


def litter(run: Run) -> dict[str, int]:
    """Put in all that is to be removed; its kinds, and bytes."""
    root, (uce, esd) = run.folder.root, run.plan.jobs
    temporary = {
        f"jobs/{esd.folder}/.delta.safetensors.efface-x1y2z3_9": 10,
        f"evaluations/{uce.folder}/.00000.json.efface-abcdefgh": 20,
        "sheets/.cat.png.efface-abcdefgh": 40,
        ".table.parquet.efface-abcdefgh": 80,
        f"evaluations/{uce.folder}/00000-0123456789abcdef.progress": 160,
    }
    for name, size in temporary.items():
        write_old(root / name, size)
    (root / "jobs" / EARLIER).mkdir()
    (root / "jobs" / EARLIER / "checkpoint.safetensors").write_bytes(b"x" * 200)
    model = EARLIER.rpartition("-")[2]
    started = TaskStarted(time="t", worker=0, task="training", id="any", description="esd: dog", model=model)
    (root / "logs" / "20260101T000000.000000Z.jsonl").write_text(started.model_dump_json() + "\n")
    run.folder.checkpoint(esd).write_bytes(b"x" * 1000)
    run.folder.cache.mkdir(exist_ok=True)
    (run.folder.cache / "latents-0123456789abcdef.safetensors").write_bytes(b"x" * 10_000)
    return {
        "half-written files": 310,
        "unfinished jobs that are not requested here": 200,
        "checkpoints of finished jobs": 1000,
        "training data of finished jobs": 10_000,
    }


def write_old(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    moment = time.time() - 2 * PARTIAL_FILE_AGE
    os.utime(path, (moment, moment))


def test_what_is_not_needed_goes_and_everything_else_stays_byte_for_byte(
    done: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = collect(done)
    assert set(clear) <= {"training data of finished jobs"}
    expected = litter(done)
    before = files(done.folder.root)
    assert collect(done) == expected
    gone = before.keys() - files(done.folder.root).keys()
    assert sum(len(before[name]) for name in gone) == sum(expected.values()) and len(gone) == 8
    assert files(done.folder.root) == {name: content for name, content in before.items() if name not in gone}
    assert collect(done) == {}

    def start(*given: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(running, "LocalExecutor", start)
    execute(done, 0, None, Console(file=io.StringIO()))


def test_finished_work_of_another_plan_and_files_that_may_be_in_the_making_stay(done: Run) -> None:
    collect(done)
    litter(done)
    collect(done)
    other = done.folder.root / "jobs" / EARLIER
    for name in ("record.json", "delta.safetensors", "checkpoint.safetensors", ".delta.safetensors.efface-x1y2z3_9"):
        (other / name).write_bytes(b"x")
    before = files(done.folder.root)
    assert collect(done) == {} and files(done.folder.root) == before


def test_a_dry_run_says_the_same_and_removes_nothing(done: Run) -> None:
    collect(done)
    expected = litter(done)
    before = files(done.folder.root)
    leases = sorted((done.folder.root / "leases").iterdir())
    assert collect(done, dry_run=True) == expected
    assert files(done.folder.root) == before and sorted((done.folder.root / "leases").iterdir()) == leases


def test_a_dry_run_names_each_file_that_goes(
    done: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(done)
    litter(done)
    before = files(done.folder.root)
    monkeypatch.setattr(sys, "argv", ["efface", "gc", str(done.folder.root), "--dry-run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    printed = capsys.readouterr().out
    collect(done)
    gone = before.keys() - files(done.folder.root).keys()
    assert len(gone) == 8 and all(
        f"{len(before[name]):,} bytes  {done.folder.root / name}\n" in printed for name in gone
    )
    assert "11,510 bytes" in printed


THEIRS = [
    ".env", ".git/index", ".venv/bin/python", ".table.parquet.backup01", "src/.cache.efface-abcdefgh",
    "cache/huggingface/model.safetensors", "cache/mine.npy", "cache/latents-of-last-week.safetensors", "cache/.keep",
    "jobs/slurm/checkpoint.safetensors", "jobs/slurm/log.txt", "jobs/.hidden", "jobs/README", "logs/.old.txt",
    "jobs/sweep-fedcba9876543210/checkpoint.safetensors", "evaluations/notes/draft.md", "evaluations/notes/.draft.swp",
    "runs/other/jobs/x-0123456789abcdef/checkpoint.safetensors",
]  # fmt: skip


def test_files_that_the_run_did_not_write_stay_however_old_they_are(done: Run) -> None:
    collect(done)
    litter(done)
    for name in THEIRS:
        write_old(done.folder.root / name, 5)
    own_notes = done.folder.root / "jobs" / EARLIER / "notes.txt"
    write_old(own_notes, 5)
    collect(done)
    assert own_notes.is_file()
    assert [name for name in THEIRS if not (done.folder.root / name).is_file()] == []


def test_links_out_of_the_run_folder_are_not_followed(done: Run, tmp_path: Path) -> None:
    collect(done)
    shared = tmp_path / "shared"
    for name in ("latents-0123456789abcdef.safetensors", ".x.efface-abcdefgh", "checkpoint.safetensors"):
        write_old(shared / name, 5)
    shutil.rmtree(done.folder.cache, ignore_errors=True)
    done.folder.cache.symlink_to(shared)
    shutil.rmtree(done.folder.sheets)
    done.folder.sheets.symlink_to(shared)
    assert collect(done) == {} and len(list(shared.iterdir())) == 3


def test_a_folder_without_the_sign_of_a_run_is_left_alone(done: Run) -> None:
    litter(done)
    (done.folder.root / "run.json").unlink()
    before = files(done.folder.root)
    with pytest.raises(UserError, match="is not a run folder"):
        collect(done)
    assert files(done.folder.root) == before


def test_a_full_disk_does_not_keep_it_from_making_room(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(done)
    expected = litter(done)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert collect(done) == expected


def test_a_full_disk_does_not_hide_that_a_driver_works_on_the_run(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    litter(done)
    before = files(done.folder.root)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Lease(done.folder.root), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="is at work on this run"):
            collect(done)
    assert files(done.folder.root) == before


@pytest.mark.parametrize("text", ["# My notes on this campaign.\nname: tiny  # short\n", "not even: [YAML"])
def test_a_campaign_file_that_no_run_wrote_is_never_rewritten(
    text: str, campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    (tmp_path / "campaign.yaml").write_text(text)
    with pytest.raises(UserError, match=r"campaign\.yaml|format"):
        open_run(campaign(), tmp_path)
    assert (tmp_path / "campaign.yaml").read_text() == text and len(list(tmp_path.iterdir())) == 1


def test_what_an_unfinished_job_will_take_up_stays(done: Run) -> None:
    collect(done)
    litter(done)
    esd = done.plan.jobs[1]
    (done.folder.job(esd) / "record.json").unlink()
    removed = collect(done)
    assert "checkpoints of finished jobs" not in removed and "training data of finished jobs" not in removed
    assert done.folder.checkpoint(esd).is_file() and list(done.folder.cache.iterdir())


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
