"""Clusters of several nodes with invented GPUs: who is admitted, what a killed node costs, who comes back.

The nodes are real ones of Ray, on loopback; only their GPUs are invented, and the workers are fakes.
"""

import contextlib
import io
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from chaos_cluster import NodesOnLoopback
from fake_worker import FakeWorker, expected
from ray._private import ray_constants
from rich.console import Console
from tiny_campaign import campaign_dict

from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run, worker_context
from efface.cluster.storage.journal import TaskEnded, read_journal
from efface.cluster.workers import ray_executor as executors
from efface.cluster.workers.ray_executor import RayExecutor
from efface.config_files import parse
from efface.errors import UserError
from efface.eval.judging.image_table import read_table


@contextlib.contextmanager
def joined(nodes: int, cpus: int, gpus: int) -> Iterator[NodesOnLoopback]:
    """A cluster that this process is connected to."""
    with pytest.MonkeyPatch.context() as patch, NodesOnLoopback(nodes, num_cpus=cpus, num_gpus=gpus) as cluster:
        # Else Ray looks for a cluster on loopback at this machine's other address.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield cluster
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def small() -> Iterator[NodesOnLoopback]:
    """Two nodes with three CPUs and two GPUs each."""
    with joined(nodes=2, cpus=3, gpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def big() -> Iterator[NodesOnLoopback]:
    """Eight nodes with eight CPUs and eight GPUs each."""
    with joined(nodes=8, cpus=8, gpus=8) as cluster:
        yield cluster


MakeRun = Callable[..., Run]


@pytest.fixture
def run_of(campaign_inputs: Path, tmp_path: Path) -> MakeRun:
    """A run whose workers take so many GPUs."""

    def make(gpus: float, shard_size: int = 5, targets: int = 1, cpus: int = 1, images: int = 1) -> Run:
        """images: so many times as many of each prompt as elsewhere."""
        evaluation = {**campaign_dict(campaign_inputs)["evaluation"], "shard_size": shard_size}
        evaluation["images_per_prompt"] *= images
        changes = {"concepts": {"targets": ["cat", "bus"][:targets]}, "resources": {"cpus": cpus, "gpus": gpus}}
        campaign = campaign_dict(campaign_inputs, evaluation=evaluation, **changes)
        return open_run(parse(Campaign, campaign, "campaign"), tmp_path / "run")

    return make


def quiet() -> Console:
    return Console(file=io.StringIO())


def workers_of(run: Run, max_workers: int) -> int:
    """How many workers an executor starts for a run."""
    with contextlib.closing(RayExecutor(worker_context(run), max_workers, None, FakeWorker)) as executor:
        return executor.workers


def free_again() -> None:
    """Wait until the workers of the test before have given everything back."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        total, free = ray.cluster_resources(), ray.available_resources()
        if all(free.get(name) == total[name] for name in ("CPU", "GPU")):
            return
        time.sleep(0.1)


def of_the_base_alone(run: Run) -> Run:
    """Without jobs, so that the workers need not import torch."""
    base = run.plan.models[0]
    return replace(run, plan=run.plan.only([base]))


def is_as_expected(run: Run) -> bool:
    return bool(read_table(run.folder.table).equals(expected(run.plan, worker_context(run))))


def listening(top: int) -> set[str]:
    """Addresses at which a process and those below it listen."""
    found = set()
    for process in (psutil.Process(top), *psutil.Process(top).children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            connections = process.net_connections("inet")
            found |= {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    return found


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


def test_all_processes_of_the_cluster_listen_on_loopback_alone(small: NodesOnLoopback) -> None:
    addresses = listening(small.pid)
    assert addresses and all(map(is_loopback, addresses))


@pytest.mark.parametrize(("gpus", "max_workers", "workers"), [(1, 100, 4), (1, 3, 3), (0.5, 100, 6), (0, 100, 6)])
def test_as_many_workers_are_admitted_as_are_wanted_and_have_room_for_their_gpus_and_cpus(
    gpus: float, max_workers: int, workers: int, small: NodesOnLoopback, run_of: MakeRun
) -> None:
    free_again()
    assert workers_of(run_of(gpus), max_workers) == workers


def test_a_run_that_needs_more_than_any_node_has_is_refused_by_name_and_nothing_starts(
    small: NodesOnLoopback, run_of: MakeRun
) -> None:
    run = run_of(1, cpus=4)
    with pytest.raises(UserError, match=r"a worker needs 4 CPU, and no node of the cluster has more than 3"):
        execute(run, None, None, quiet(), FakeWorker)
    assert not list(run.folder.root.rglob("*record.json"))


def test_a_run_is_refused_where_others_hold_all_gpus(small: NodesOnLoopback, run_of: MakeRun) -> None:
    free_again()
    run = run_of(1)
    with (
        contextlib.closing(RayExecutor(worker_context(run), 4, None, FakeWorker)) as all_of_it,
        pytest.raises(UserError, match=r"a worker needs 1 CPU and 1 GPU, and all of the cluster is taken"),
    ):
        while len(all_of_it._starting) > 0:
            all_of_it.new_workers()
            time.sleep(0.1)
        execute(run, None, None, quiet(), FakeWorker)


def meddled_with(run: Run, meddle: Callable[[], None], after: int) -> list[TaskEnded]:
    """Execute a run, meddle once `after` tasks have ended; what the journal says of all that ended."""

    class Slow(FakeWorker):  # defined here, it goes to the workers by value
        job_seconds = 2.0
        shard_seconds = 1.0

    def wait_and_meddle() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and sum(isinstance(e, TaskEnded) for e in read_journal(run.folder)) < after:
            time.sleep(0.05)
        meddle()

    meddler = threading.Thread(target=wait_and_meddle)
    meddler.start()
    try:
        execute(run, None, None, quiet(), Slow)
    finally:
        meddler.join()
    return [event for event in read_journal(run.folder) if isinstance(event, TaskEnded)]


def node_exchanged(cluster: NodesOnLoopback) -> None:
    cluster.kill(0)
    cluster.add()


def test_work_of_a_killed_node_is_lost_and_done_by_others_and_a_new_node_is_used(
    small: NodesOnLoopback, run_of: MakeRun
) -> None:
    free_again()
    run = of_the_base_alone(run_of(1, shard_size=1))
    ended = meddled_with(run, lambda: node_exchanged(small), after=3)
    states = {event.state for event in ended}
    assert "worker_lost" in states and states <= {"done", "worker_lost", "superseded"}
    assert is_as_expected(run)
    assert not list(run.folder.root.rglob("failure.json"))
    assert ray.cluster_resources()["GPU"] == 4


def test_a_node_that_joins_a_run_under_way_gets_workers_of_its_own(
    small: NodesOnLoopback, run_of: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_again()
    monkeypatch.setattr(executors, "CAPACITY_CHECK_INTERVAL", 0.5)
    run = of_the_base_alone(run_of(1, shard_size=1, images=5))
    try:
        ended = meddled_with(run, small.add, after=2)
    finally:
        small.kill(2)
    assert {0, 1, 2, 3} < {event.worker for event in ended} <= {0, 1, 2, 3, 4, 5}
    assert {event.state for event in ended} <= {"done", "superseded"}
    assert is_as_expected(run)


@pytest.mark.slow
def test_sixty_four_gpus_are_all_used_and_a_node_lost_of_eight_costs_nothing_but_time(
    big: NodesOnLoopback, run_of: MakeRun
) -> None:
    run = run_of(1, shard_size=1, targets=2)
    ended = meddled_with(run, lambda: node_exchanged(big), after=10)
    assert len({event.worker for event in ended}) > 32
    assert {event.state for event in ended} <= {"done", "worker_lost", "superseded"}
    assert is_as_expected(run)


@pytest.mark.slow
def test_a_quarter_of_a_gpu_each_admits_as_many_as_have_a_cpu(big: NodesOnLoopback, run_of: MakeRun) -> None:
    free_again()
    assert workers_of(run_of(0.25), 1000) == 64
