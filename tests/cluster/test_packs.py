"""Trainings that a worker does together: which they are, and that each leaves what it leaves alone."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_dispatch import DONE, FakeExecutor, Fate, RecordingCallback, all_tasks
from tiny_campaign import ESD, ESD_CONFIG, UCE

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run, reopen_run
from efface.cluster.scheduler.dispatch import dispatch
from efface.cluster.storage.remaining import remaining_tasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.cluster.workers.worker import Worker
from efface.errors import Stopped
from efface.models.delta import Delta

SEEDS = [0, 1, 2, 3, 4, 5]
LONGER = {"method": "esd", "label": "longer", "config": {**ESD_CONFIG, "steps": 3}}


class PackingExecutor(FakeExecutor):
    """The fake one, with workers that take packs."""

    def __init__(self, plan: Plan, workers: int, fate: Fate) -> None:
        super().__init__(plan, workers, 0, fate)
        self.packs: list[list[Task]] = []

    def submit_pack(self, worker: int, tasks: Sequence[Task]) -> None:
        assert not self.in_flight[worker] and len({task.pack_key for task in tasks}) == 1
        self.packs.append(list(tasks))
        for task in tasks:
            self.log.append((worker, task))
            self.attempts[task.id] += 1
            self.in_flight[worker].append(task)


def execute_packed(plan: Plan, root: Path, workers: int = 1, pack: int = 16, fate: Any = None) -> PackingExecutor:
    folder = RunFolder(root)
    executor = PackingExecutor(plan, workers, fate or (lambda task, attempt: DONE))
    dispatch(remaining_tasks(plan, folder), folder, executor, [RecordingCallback()], pack=pack)
    return executor


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    return plan(seeds=SEEDS, methods=[UCE, ESD, LONGER])


def test_one_worker_takes_all_jobs_of_a_kind_at_once(made: Plan, tmp_path: Path) -> None:
    executor = execute_packed(made, tmp_path)
    labels = sorted([task.label for task in pack] for pack in executor.packs)
    assert labels == [["esd"] * 6, ["longer"] * 6]
    assert sorted(task.id for task in executor.ended) == all_tasks(made)


@pytest.mark.parametrize(("workers", "pack", "largest"), [(3, 16, 4), (1, 4, 4), (18, 16, 1)])
def test_workers_share_the_jobs_evenly(made: Plan, tmp_path: Path, workers: int, pack: int, largest: int) -> None:
    """Once UCE's jobs are taken, one by one, 12 of ESD are left: four for each of three workers."""
    executor = execute_packed(made, tmp_path, workers, pack)
    assert max(map(len, executor.packs), default=1) == largest
    assert sorted(task.id for task in executor.ended) == all_tasks(made)


def test_what_breaks_in_a_pack_is_tried_again_alone(made: Plan, tmp_path: Path) -> None:
    def fate(task: Task, attempt: int) -> Outcome:
        poor = isinstance(task, TrainingTask) and task.label == "esd" and attempt == 1
        return Outcome.worker_lost("the worker died") if poor else DONE

    executor = execute_packed(made, tmp_path, fate=fate)
    assert sorted(len(pack) for pack in executor.packs) == [6, 6]
    assert all(executor.attempts[task.id] == 1 + (task.label == "esd") for task in made.trainings)
    assert sorted(task.id for task in executor.ended) == all_tasks(made)


# with the worker itself


def run_here(run: Run) -> None:
    execute(run, 0, None, Console(file=io.StringIO()))


def changes(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    return {model.id: Delta.load(run.folder.delta(model)).tensors for model in run.plan.jobs}


@pytest.fixture
def campaign_of_seeds(campaign: Callable[..., Campaign]) -> Callable[..., Campaign]:
    few = {"evaluation": {"images_per_prompt": 1, "prompts_per_concept": {"adjacent": 0, "retain": 1}}}
    return lambda **resources: campaign(methods=[ESD], seeds=[0, 1, 2], resources=resources, **few)


def test_packed_jobs_leave_the_records_of_jobs_alone(
    campaign_of_seeds: Callable[..., Campaign], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs, really = [], Worker.run_pack
    monkeypatch.setattr(Worker, "run_pack", lambda self, tasks: packs.append(len(tasks)) or really(self, tasks))
    packed = open_run(campaign_of_seeds(), tmp_path / "packed")
    run_here(packed)
    alone = open_run(campaign_of_seeds(pack=1), tmp_path / "alone")
    run_here(alone)
    assert packs == [3]
    files = [
        sorted(p.relative_to(run.folder.root / "jobs") for p in (run.folder.root / "jobs").rglob("*"))
        for run in (packed, alone)
    ]
    assert files[0] == files[1]
    for task in packed.plan.trainings:
        one, other = (json.loads(run.folder.record_file(task).read_text()) for run in (packed, alone))
        assert one.keys() == other.keys() and one["id"] == other["id"]
        assert one["facts"]["job"] == other["facts"]["job"]
        log = packed.folder.task_log(task)
        assert log and log.read_text().count("step 2 of 2") == 1
    for name, tensors in changes(packed).items():
        for key, value in changes(alone)[name].items():
            torch.testing.assert_close(value, tensors[key], rtol=1e-3, atol=1e-6)


def test_a_stopped_pack_goes_on_where_each_of_its_jobs_was(
    campaign_of_seeds: Callable[..., Campaign], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, really = open_run(campaign_of_seeds(), tmp_path / "run"), Worker.on_step
    steps: list[tuple[str, int]] = []

    def on_step(self: Worker, task: Task, done: int, of: int, loss: float) -> None:
        steps.append((task.id, done))
        if len(steps) <= 3:
            raise Stopped
        really(self, task, done, of, loss)

    monkeypatch.setattr(Worker, "on_step", on_step)
    with pytest.raises(Stopped):
        run_here(run)
    run_here(reopen_run(tmp_path / "run"))
    assert sorted(steps) == sorted((task.id, step) for task in run.plan.trainings for step in (1, 2))
