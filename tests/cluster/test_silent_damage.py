"""A changed bit in a file that kept its size and time: found before anything is built on it, and made again."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_worker import FakeWorker
from rich.console import Console

from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run
from efface.cluster.tasks.calibration import CALIBRATION
from efface.cluster.tasks.judging import IMAGES, VERDICTS


@pytest.fixture
def done(campaign: Callable[..., Campaign], tmp_path: Path) -> Run:
    """A finished run of the fake worker."""
    run = open_run(campaign(), tmp_path / "run")
    run_here(run)
    return run


def run_here(run: Run) -> None:
    execute(run, 0, None, Console(file=io.StringIO()), FakeWorker)


def contents(root: Path) -> dict[str, bytes]:
    kept = (path for path in root.rglob("*") if path.suffix in (".parquet", ".safetensors", ".png"))
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


def flip_a_bit(path: Path) -> None:
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", [VERDICTS, IMAGES])
def test_verdicts_and_shown_images_are_hashed_when_results_are_gathered(name: str, done: Run) -> None:
    before = contents(done.folder.root)
    for model in done.plan.models:
        flip_a_bit(done.folder.output(done.plan.shards[model.id][0], name))
    done.folder.table.unlink()
    run_here(done)
    assert contents(done.folder.root) == before


def test_a_calibration_is_hashed_when_results_are_gathered(done: Run) -> None:
    path = done.folder.output(done.plan.calibrations[0], CALIBRATION)
    before = path.read_bytes()
    flip_a_bit(path)
    run_here(done)
    assert path.read_bytes() == before


def test_a_delta_is_hashed_when_a_worker_reads_it(done: Run) -> None:
    before, (model, *_) = contents(done.folder.root), done.plan.jobs
    flip_a_bit(done.folder.delta(model))
    done.folder.record_file(done.plan.shards[model.id][0]).unlink()
    run_here(done)
    assert contents(done.folder.root) == before


def test_the_delta_that_a_chain_continues_is_hashed_when_a_worker_reads_it(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    run = open_run(campaign(strategy="continual", concepts={"targets": ["cat", "bus"]}), tmp_path / "run")
    run_here(run)
    before = contents(run.folder.root)
    first, second = (next(m for m in run.plan.jobs if (m.predecessor is None) is first) for first in (True, False))
    flip_a_bit(run.folder.delta(first))
    (run.folder.job(second) / "record.json").unlink()
    run_here(run)
    assert contents(run.folder.root) == before
