"""A job on two processes under Ray: the delta of one, also when one of them is killed, or Ray Train starts them."""

import contextlib
import io
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import psutil
import pytest
import ray
from rich.console import Console
from tiny_campaign import campaign_dict

from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run, worker_context
from efface.cluster.storage.journal import TaskEnded, read_journal
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.workers import process_group
from efface.cluster.workers.process_group import ActorLauncher, RayTrainLauncher
from efface.cluster.workers.ray_session import init_ray
from efface.cluster.workers.worker import Worker
from efface.config_files import parse
from efface.errors import UserError
from efface.models.base import load_base
from efface.models.delta import Delta

STEPS = 60
METHOD = {
    "method": "esd",
    "config": {"steps": STEPS, "learning_rate": 1e-3, "rollout_steps": 3, "gradient_accumulation_steps": 2},
}


def run_of(campaign_inputs: Path, root: Path, **changes: Any) -> Run:
    keys = {"methods": [METHOD], "limits": {"checkpoint_steps": 5}, "resources": {"processes": 2}, **changes}
    return open_run(parse(Campaign, campaign_dict(campaign_inputs, **keys), "campaign"), root)


def finish(run: Run, workers: int) -> Delta:
    results = execute(run, workers, None, Console(file=io.StringIO()))
    assert results.failures == []
    return Delta.load(run.folder.delta(run.plan.jobs[0]))


@pytest.fixture(scope="module")
def alone(campaign_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Delta:
    """What one process makes of the job."""
    return finish(run_of(campaign_inputs, tmp_path_factory.mktemp("alone") / "run"), 0)


def assert_same(delta: Delta, other: Delta, campaign_inputs: Path) -> None:
    """Each tensor's change, to a thousandth."""
    before = load_base(campaign_inputs / "base.yaml").originals()
    assert delta.tensors.keys() == other.tensors.keys()
    for name, value in delta.tensors.items():
        change = other.tensors[name] - before[name]
        assert (value - other.tensors[name]).norm() <= 1e-3 * change.norm()


@contextmanager
def a_member_killed(checkpoint: Path) -> Iterator[list[int]]:
    """Kills a process of the group once the job has been saved for the first time; the list holds its number then."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05) and not killed:
            if not checkpoint.exists():
                continue
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith("ray::Member") and not killed:
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield killed
    over.set()
    thread.join()


@pytest.mark.slow
def test_a_process_group_that_loses_a_process_goes_on_and_ends_with_the_same_delta(
    campaign_inputs: Path, tmp_path: Path, alone: Delta
) -> None:
    run = run_of(campaign_inputs, tmp_path / "run")
    with a_member_killed(run.folder.checkpoint(run.plan.jobs[0])) as killed:
        delta = finish(run, 2)
    assert killed
    ends = [e.state for e in read_journal(run.folder) if isinstance(e, TaskEnded) and e.task == "training"]
    assert ends == ["error", "done"]
    assert_same(delta, alone, campaign_inputs)


@pytest.mark.slow
def test_ray_train_starts_the_processes_where_it_should(campaign_inputs: Path, tmp_path: Path, alone: Delta) -> None:
    resources = {"processes": 2, "launcher": "ray-train"}
    assert_same(finish(run_of(campaign_inputs, tmp_path / "run", resources=resources), 2), alone, campaign_inputs)


@pytest.fixture
def ray_here() -> Iterator[None]:
    """A Ray of this test's own, for leaders that run in this process."""
    with TemporaryDirectory(prefix="efface-ray-", ignore_cleanup_errors=True) as scratch:
        init_ray(None, 2, scratch)
        yield
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_process_group_whose_port_is_taken_meets_at_another(
    campaign_inputs: Path, tmp_path: Path, alone: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(campaign_inputs, tmp_path / "run")
    with socket.socket() as other:
        other.bind((ray.util.get_node_ip_address(), 0))
        other.listen()
        taken, tried = other.getsockname(), tmp_path / "tried"

        class Unlucky(process_group.RankActor):
            def address(self) -> tuple[str, int]:
                free = super().address()
                first = not tried.exists()
                tried.touch()
                return taken if first else free

        monkeypatch.setattr(process_group, "RankActor", Unlucky)
        outcome = ActorLauncher().run(worker_context(run), run.plan.jobs[0], 2)
    assert outcome.state == "done" and tried.exists()
    assert_same(Delta.load(run.folder.delta(run.plan.jobs[0])), alone, campaign_inputs)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("launcher", [ActorLauncher, RayTrainLauncher])
def test_where_one_process_cannot_go_on_the_others_do_not_wait_for_it(
    launcher: type[ActorLauncher], campaign_inputs: Path, tmp_path: Path
) -> None:
    """The first process alone writes the checkpoint; the others wait for it, up to half an hour, in the next step."""
    run = run_of(campaign_inputs, tmp_path / "run")
    job = run.plan.jobs[0]
    Path(run.folder.checkpoint(job)).mkdir(parents=True)
    start = time.monotonic()
    outcome = launcher().run(worker_context(run), job, 2)
    assert outcome.state == "storage" and time.monotonic() - start < 900


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("launcher", [ActorLauncher, RayTrainLauncher])
def test_a_process_group_one_of_which_runs_out_of_memory_halves_its_batches_together(
    launcher: type[ActorLauncher], campaign_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(rank: int, smaller_batch: bool) -> None:
        """In this process the loss asks for too much memory from now on."""
        from efface.train.methods.esd import ESD

        def loss(*arguments: Any) -> Any:
            raise MemoryError("out of memory")

        if rank == 1 and not smaller_batch:
            mock.patch.object(ESD, "loss", loss).start()

    class Short(process_group.RankActor):
        def run(self, context: Any, model: Any, smaller_batch: bool, rank: int, *where: Any) -> Any:
            exhaust(rank, smaller_batch)
            return super().run(context, model, smaller_batch, rank, *where)

    class ShortWorker(Worker):
        def run(self, task: Any, smaller_batch: bool = False) -> Any:
            exhaust(self._rank, smaller_batch)
            return super().run(task, smaller_batch)

    monkeypatch.setattr(process_group, "RankActor", Short)
    if launcher is RayTrainLauncher:
        monkeypatch.setattr(process_group, "Worker", ShortWorker)
    method = {"method": "esd", "config": {**METHOD["config"], "steps": 2, "batch_size": 2}}
    run = run_of(campaign_inputs, tmp_path / "run", methods=[method])
    job = run.plan.jobs[0]
    assert launcher().run(worker_context(run), job, 2) == Outcome.done(smaller_batch=True)
    output = Delta.load(run.folder.delta(job)).provenance["reduced_micro_batch"]
    assert output == {"batch_size": 1, "gradient_accumulation_steps": 4}


def test_batches_that_cannot_be_shared_out_are_refused_before_anything_runs(campaign_inputs: Path) -> None:
    campaign = parse(Campaign, campaign_dict(campaign_inputs, resources={"processes": 3}, methods=[METHOD]), "campaign")
    with pytest.raises(UserError, match="should be a multiple of 3, not 2"):
        plan_campaign(campaign)
