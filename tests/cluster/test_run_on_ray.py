"""The same campaign on Ray actors comes to the same bytes, in whatever shards, and whoever is killed on the way."""

import contextlib
import io
import ipaddress
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import ray
from rich.console import Console
from tiny_campaign import campaign_dict

from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run
from efface.cluster.workers.ray_executor import RayExecutor
from efface.cluster.workers.worker import WorkerContext
from efface.config_files import parse
from efface.errors import UserError
from efface.eval.judging.image_table import read_table


def deltas(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("delta.safetensors")}


@dataclass
class Watch:
    """Looks at the processes that start below this one, until it is left; `at_each_look` may meddle with them."""

    at_each_look: Callable[[list[psutil.Process]], None] = lambda processes: None
    seen: dict[int, psutil.Process] = field(default_factory=dict)
    listening: dict[str, set[str]] = field(default_factory=dict)
    """Address -> names of processes that listened there."""
    others: frozenset[psutil.Process] = frozenset()
    """What other tests have started, and is none of ours."""

    def __enter__(self) -> "Watch":
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_event.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop_event.wait(0.2):
            processes = [process for child in me.children() if child not in self.others for process in _tree(child)]
            self.at_each_look(processes)
            for process in (me, *processes):
                with contextlib.suppress(psutil.Error):
                    for connection in process.net_connections("inet"):
                        if connection.status == psutil.CONN_LISTEN:
                            self.listening.setdefault(connection.laddr.ip, set()).add(process.name())
            self.seen |= {process.pid: process for process in processes}


def _tree(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


@dataclass
class SmallKill:
    """Kills the first Ray worker that is seen once some shard in `root` is done."""

    root: Path
    killed: int | None = None

    def __call__(self, processes: list[psutil.Process]) -> None:
        if self.killed or not list(self.root.glob("evaluations/*/*.json")):
            return
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("ray::Worker"):
                    os.kill(process.pid, signal.SIGKILL)
                    self.killed = process.pid
                    return


@dataclass
class Carried:
    run: Run
    watch: Watch
    failures: list[str]


@pytest.fixture(scope="module")
def others() -> frozenset[psutil.Process]:
    """What runs below this process before any Ray of these tests."""
    return frozenset(psutil.Process().children())


@pytest.fixture(scope="module")
def by_two(
    others: frozenset[psutil.Process], campaign_inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Carried:
    """The campaign executed by two workers on a Ray of its own, which is gone afterwards."""
    run = open_run(parse(Campaign, campaign_dict(campaign_inputs), "campaign"), tmp_path_factory.mktemp("two") / "run")
    with Watch(others=others) as watch:
        results = execute(run, 2, None, Console(file=io.StringIO()))
    return Carried(run, watch, results.failures)


@pytest.fixture(scope="module")
def ray_of_ours(by_two: Carried) -> Iterator[RayExecutor]:
    """A Ray started by an executor whose one worker cannot start, for it holds another base than the context names."""
    executor = RayExecutor(context(by_two.run, base_id="0" * 64), 1)
    scratch = Path(executor._scratch.name)
    assert scratch.is_dir()
    yield executor
    executor.close()
    assert not scratch.exists()


@pytest.fixture(scope="module")
def by_one_that_is_killed(
    ray_of_ours: RayExecutor, by_two: Carried, campaign_inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Carried, SmallKill]:
    """The campaign in other shards, by one worker which is killed in the middle, on a Ray that was there before."""
    evaluation = {**campaign_dict(campaign_inputs)["evaluation"], "shard_size": 3}
    campaign = parse(Campaign, campaign_dict(campaign_inputs, evaluation=evaluation), "campaign")
    run = open_run(campaign, tmp_path_factory.mktemp("one") / "run")
    kill = SmallKill(run.folder.root)
    with Watch(kill) as watch:
        results = execute(run, 1, None, Console(file=io.StringIO()))
    return Carried(run, watch, results.failures), kill


def context(run: Run, base_id: str) -> WorkerContext:
    plan = run.plan
    return WorkerContext(
        root=str(run.folder.root),
        base=plan.base,
        base_id=base_id,
        concept_set=plan.concept_set,
        recipe=plan.recipe,
        prompt_set=plan.prompt_set,
        calibrations=plan.calibrations,
        judged=plan.judged,
        cpus=1,
        gpus=0,
    )


def test_what_ray_writes_is_where_no_other_user_comes(ray_of_ours: RayExecutor) -> None:
    scratch = Path(ray_of_ours._scratch.name)
    assert scratch.stat().st_mode & 0o777 == 0o700
    assert list(scratch.glob("ray/session_*/sockets/*")) and [path.name for path in scratch.iterdir()] == ["ray"]


def test_two_workers_make_the_same_table_and_deltas_as_this_process_alone(by_two: Carried, finished: Path) -> None:
    assert by_two.failures == []
    assert deltas(by_two.run.folder.root) == deltas(finished)
    assert by_two.run.folder.table.read_bytes() == (finished / "table.parquet").read_bytes()


def test_two_workers_really_ran(by_two: Carried) -> None:
    names = [path.parent.name for path in by_two.run.folder.root.rglob("*.images.parquet")]
    assert len(names) == by_two.run.plan.shard_count
    assert len(by_two.watch.seen) > 4


def test_nothing_listens_beyond_this_machine(by_two: Carried) -> None:
    assert by_two.watch.listening

    def is_loopback(text: str) -> bool:
        address = ipaddress.ip_address(text)
        inner = getattr(address, "ipv4_mapped", None) or address
        return bool(inner.is_loopback)

    assert {ip: names for ip, names in by_two.watch.listening.items() if not is_loopback(ip)} == {}


def test_no_process_is_left_behind(by_two: Carried) -> None:
    _, alive = psutil.wait_procs(list(by_two.watch.seen.values()), timeout=10)
    assert [process.name() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_worker_that_cannot_start_ends_the_run_with_its_own_sentence(
    ray_of_ours: RayExecutor, by_two: Carried
) -> None:
    with pytest.raises(
        UserError, match=r"a worker cannot start: base 'tiny' has fingerprint [0-9a-f]{16} on this node"
    ):
        for _ in range(200):
            list(ray_of_ours.outcomes(timeout=0.5))
            ray_of_ours.new_workers()


def test_a_worker_killed_in_the_middle_is_replaced_and_the_results_are_the_same(
    by_one_that_is_killed: tuple[Carried, SmallKill], finished: Path
) -> None:
    carried, kill = by_one_that_is_killed
    assert kill.killed and not psutil.pid_exists(kill.killed)
    assert carried.failures == []
    assert not list(carried.run.folder.root.rglob("failure.json"))
    assert deltas(carried.run.folder.root) == deltas(finished)
    assert read_table(carried.run.folder.table).to_pylist() == read_table(finished / "table.parquet").to_pylist()


def test_a_ray_that_was_there_before_stays(by_one_that_is_killed: tuple[Carried, SmallKill]) -> None:
    assert ray.is_initialized()
