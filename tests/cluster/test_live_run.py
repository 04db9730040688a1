"""What a run does now, read from its folder by somebody else."""

import shutil
from pathlib import Path

import pytest

from efface.cluster.live_run import live_run
from efface.cluster.run import reopen_run
from efface.cluster.storage.journal import Journal
from efface.cluster.storage.lease import Lease
from efface.cluster.storage.under_way import Count, note_count
from efface.cluster.tasks.retry_rules import Outcome


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_that_nobody_works_on_has_neither_workers_nor_a_time_left(run: Path) -> None:
    opened = reopen_run(run)
    live = live_run(opened.plan, opened.folder)
    assert (live.driver, live.running, live.rates, live.seconds_left) == (None, (), {}, None)
    assert live.summary.tasks["judging"].left == 0


def test_running_tasks_have_their_step_and_the_rest_an_estimate(run: Path) -> None:
    """Three shards of esd are left: the first took 10 s for its 5 images, and the others have an estimate by that."""
    opened = reopen_run(run)
    plan, folder = opened.plan, opened.folder
    model = next(model for model in plan.jobs if model.method == "esd")
    shards, training = plan.shards[model.id], plan.trainings[1]
    for task in shards:
        folder.record_file(task).unlink()
    with Lease(run):
        journal = Journal(folder)
        journal.started(0, shards[0])
        journal._clock._since[0] -= 10
        journal.ended(0, shards[0], Outcome.done(), False)
        journal.started(0, shards[1])
        journal.started(1, training)
        folder.log(model).write_text("step 1 of 2, loss 0.5\n")
        note_count(folder, shards[1], Count("image", 4, 5, 2.0))
        live = live_run(plan, folder)
        journal.close()
    assert live.driver is not None
    assert [(task.worker, task.description, task.progress) for task in live.running] == [
        (0, shards[1].describe(), "image 4 of 5"),
        (1, training.describe(), "step 1 of 2, loss 0.5"),
    ]
    assert live.rates == {"judging": 5 + 4 * 1.0 / 2.0}  # a second of the run: five images ended, two of four drawn
    assert live.seconds_left is not None
