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

from efface.cluster import gang
from efface.cluster.campaign import Campaign
from efface.cluster.executors import start_or_join
from efface.cluster.expand import plan_campaign
from efface.cluster.gang import Leader, TrainLeader
from efface.cluster.journal import read_journal
from efface.cluster.run import Run, carry_out, open_run, setting_of
from efface.cluster.worker import Outcome, Worker
from efface.errors import UserError
from efface.models.base import load_base
from efface.models.delta import Delta
from efface.strict import parse

STEPS = 60
METHOD = {
    "method": "esd",
    "config": {"steps": STEPS, "learning_rate": 1e-3, "rollout_steps": 3, "gradient_accumulation_steps": 2},
}


def run_of(world: Path, root: Path, **changes: Any) -> Run:
    keys = {"methods": [METHOD], "limits": {"checkpoint_steps": 5}, "resources": {"processes": 2}, **changes}
    return open_run(parse(Campaign, campaign_dict(world, **keys), "campaign"), root)


def finish(run: Run, workers: int) -> Delta:
    results = carry_out(run, workers, None, Console(file=io.StringIO()))
    assert results.failures == []
    return Delta.load(run.folder.delta(run.plan.jobs[0]))


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Delta:
    """What one process makes of the job."""
    return finish(run_of(world, tmp_path_factory.mktemp("alone") / "run"), 0)


def assert_same(delta: Delta, other: Delta, world: Path) -> None:
    """Each tensor's change, to a thousandth."""
    before = load_base(world / "base.yaml").originals()
    assert delta.tensors.keys() == other.tensors.keys()
    for name, value in delta.tensors.items():
        change = other.tensors[name] - before[name]
        assert (value - other.tensors[name]).norm() <= 1e-3 * change.norm()


@contextmanager
def a_member_killed(checkpoint: Path) -> Iterator[list[int]]:
    """Kills a process of the gang once the job has been saved for the first time; the list holds its number then."""
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
def test_a_gang_that_loses_a_process_goes_on_and_ends_with_the_same_delta(
    world: Path, tmp_path: Path, alone: Delta
) -> None:
    run = run_of(world, tmp_path / "run")
    with a_member_killed(run.folder.checkpoint(run.plan.jobs[0])) as killed:
        delta = finish(run, 2)
    assert killed
    ends = [e["state"] for e in read_journal(run.folder) if e["event"] == "ended" and e["work"] == "job"]
    assert ends == ["fault", "done"]
    assert_same(delta, alone, world)


@pytest.mark.slow
def test_ray_train_starts_the_processes_where_it_should(world: Path, tmp_path: Path, alone: Delta) -> None:
    resources = {"processes": 2, "launcher": "ray-train"}
    assert_same(finish(run_of(world, tmp_path / "run", resources=resources), 2), alone, world)


@pytest.fixture
def ray_here() -> Iterator[None]:
    """A Ray of this test's own, for leaders that run in this process."""
    with TemporaryDirectory(prefix="efface-ray-", ignore_cleanup_errors=True) as scratch:
        start_or_join(None, 2, scratch)
        yield
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_gang_whose_port_is_taken_meets_at_another(
    world: Path, tmp_path: Path, alone: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(world, tmp_path / "run")
    with socket.socket() as other:
        other.bind((ray.util.get_node_ip_address(), 0))
        other.listen()
        taken, tried = other.getsockname(), tmp_path / "tried"

        class Unlucky(gang.Member):
            def address(self) -> tuple[str, int]:
                free = super().address()
                first = not tried.exists()
                tried.touch()
                return taken if first else free

        monkeypatch.setattr(gang, "Member", Unlucky)
        outcome = Leader().run(setting_of(run), run.plan.jobs[0], 2)
    assert outcome.state == "done" and tried.exists()
    assert_same(Delta.load(run.folder.delta(run.plan.jobs[0])), alone, world)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("leader", [Leader, TrainLeader])
def test_where_one_process_cannot_go_on_the_others_do_not_wait_for_it(
    leader: type[Leader], world: Path, tmp_path: Path
) -> None:
    """The first process alone writes the checkpoint; the others wait for it, up to half an hour, in the next step."""
    run = run_of(world, tmp_path / "run")
    job = run.plan.jobs[0]
    Path(run.folder.checkpoint(job)).mkdir(parents=True)
    start = time.monotonic()
    outcome = leader().run(setting_of(run), job, 2)
    assert outcome.state == "storage" and time.monotonic() - start < 900


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("leader", [Leader, TrainLeader])
def test_a_gang_one_of_which_runs_out_of_memory_halves_its_batches_together(
    leader: type[Leader], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(rank: int, halve: bool) -> None:
        """In this process the loss asks for too much memory from now on."""
        from efface.train.methods.esd import ESD

        def loss(*arguments: Any) -> Any:
            raise MemoryError("out of memory")

        if rank == 1 and not halve:
            mock.patch.object(ESD, "loss", loss).start()

    class Short(gang.Member):
        def run(self, setting: Any, model: Any, halve: bool, rank: int, *where: Any) -> Any:
            exhaust(rank, halve)
            return super().run(setting, model, halve, rank, *where)

    class ShortWorker(Worker):
        def run(self, work: Any, halve: bool = False) -> Any:
            exhaust(self._rank, halve)
            return super().run(work, halve)

    monkeypatch.setattr(gang, "Member", Short)
    if leader is TrainLeader:
        monkeypatch.setattr(gang, "Worker", ShortWorker)
    method = {"method": "esd", "config": {**METHOD["config"], "steps": 2, "batch_size": 2}}
    run = run_of(world, tmp_path / "run", methods=[method])
    job = run.plan.jobs[0]
    assert leader().run(setting_of(run), job, 2) == Outcome("done", halved=True)
    told = Delta.load(run.folder.delta(job)).provenance["batch_halved"]
    assert told == {"batch_size": 1, "gradient_accumulation_steps": 4}


def test_batches_that_cannot_be_shared_out_are_refused_before_anything_runs(world: Path) -> None:
    campaign = parse(Campaign, campaign_dict(world, resources={"processes": 3}, methods=[METHOD]), "campaign")
    with pytest.raises(UserError, match="should be a multiple of 3, not 2"):
        plan_campaign(campaign)
