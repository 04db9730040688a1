"""How busy 64 GPUs are kept, and what a large plan costs the driver; `python -m benchmarks.busy`, about ten minutes.

The GPUs are invented: eight nodes of Ray on loopback with eight each, and workers that take ten seconds for a shard.
Busy is the workers' time in shards over 64 times the time from the first shard's start to the last one's end; starting
64 Python processes on the few cores of this machine is left out, so no task starts before all are up. The driver's
memory is measured with 100,000 shards that end at once. Writes benchmarks/results/busy.json.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.plan import large_campaign
from benchmarks.record import write_result
from benchmarks.scan import SHARDS, cut

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

from chaos_cluster import NodesOnLoopback
from fake_worker import FakeWorker

import efface.cluster.run as running
from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.spec import Campaign, read_campaign
from efface.cluster.run import Run
from efface.cluster.scheduler.dispatch import Dispatcher
from efface.cluster.scheduler.prometheus import PrometheusMetrics
from efface.cluster.storage.journal import Journal, TaskEnded, read_journal
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.calibration import CalibrationPart
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.workers.ray_executor import RayExecutor

NODES, GPUS_EACH = 8, 8
GPUS = NODES * GPUS_EACH
SHARDS_PER_GPU = 20.3
"""Shards for each GPU: no whole number, so that the end is ragged."""


class TenSeconds(FakeWorker):
    shard_seconds = 10.0


class AllAtOnce(RayExecutor):
    """No task before all workers are up."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._up: list[int] = []
        self._begun = False

    def new_workers(self) -> list[int]:
        if self._begun:
            return super().new_workers()
        self._up += super().new_workers()
        self._begun = len(self._up) == self.workers
        return self._up if self._begun else []


def many_shards(shards: int) -> Plan:
    """Shards of one image each, all of the base: workers need no torch for those."""
    campaign = read_campaign("demo", ["evaluation.shard_size=1", "evaluation.images_per_prompt=100"])
    data = {**campaign.model_dump(mode="json"), "resources": {"cpus": 1, "gpus": 1}}
    plan = plan_campaign(Campaign.model_validate(data))
    base = plan.only(plan.models[:1])
    return replace(
        base, tasks=(*base.of_kind(CalibrationPart), *base.calibrations, *base.shards[base.models[0].id][:shards])
    )


def busy(gpus: int, shards: int) -> dict[str, Any]:
    """Executed by the whole of `efface.cluster.run`, journal and records included."""
    plan = many_shards(shards)
    assert plan.shard_count == shards, plan.shard_count
    running.RayExecutor = AllAtOnce  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="busy-") as root:
        run = Run(plan, RunFolder(Path(root, "run")))
        with NodesOnLoopback(NODES, num_cpus=GPUS_EACH, num_gpus=GPUS_EACH) as cluster:
            running.execute(run, gpus, cluster.address, Console(file=io.StringIO()), TenSeconds)
        events = [event for event in read_journal(run.folder) if isinstance(event, TaskEnded)]
        ended = [event for event in events if event.task == Shard.kind]
        records = run.folder.records(plan.shards[plan.models[0].id])
    at = [_seconds(event.time) for event in ended]
    work_seconds = sum(record.seconds or 0.0 for record in records.values())
    first = min(end - event.seconds for end, event in zip(at, ended, strict=True))
    makespan = max(at) - first
    return {
        "gpus": gpus,
        "workers_used": len({event.worker for event in ended}),
        "shards": shards,
        "states": sorted({event.state for event in ended}),
        "work_seconds": round(work_seconds, 1),
        "makespan": round(makespan, 1),
        "busy": round(work_seconds / (gpus * makespan), 4),
    }


def _seconds(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()


class Instant:
    """An executor whose tasks end at once."""

    depth = 2
    processes = 1
    process_groups = None

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._new_workers = list(range(workers))
        self._finished: list[tuple[int, Task, Outcome]] = []

    def new_workers(self) -> list[int]:
        new_workers, self._new_workers = self._new_workers, []
        return new_workers

    def submit(self, worker: int, task: Task) -> None:
        self._finished.append((worker, task, Outcome.done()))

    def select_workers(self, idle: Sequence[int]) -> list[int] | None:
        return list(idle[:1])

    def submit_job(self, workers: Sequence[int], task: Task) -> None:
        self.submit(workers[0], task)

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        ended, self._finished = self._finished, []
        yield from ended

    def speed(self, worker: int) -> float:
        return 1.0

    def replace(self, worker: int) -> bool:
        return False

    def clock(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        pass


def memory(shards: int) -> dict[str, Any]:
    """Of a driver that plans and dispatches so many shards, with its journal and metrics. Bytes."""
    before = psutil.Process().memory_info().rss
    tracemalloc.start()
    start = time.perf_counter()
    plan = cut(plan_campaign(large_campaign(), fetch=False), shards)
    remaining = RemainingTasks.everything(plan)
    with tempfile.TemporaryDirectory(prefix="busy-") as root:
        folder, executor = RunFolder(root), Instant(GPUS)
        with contextlib.closing(Journal(folder)) as journal:
            callbacks = [journal, PrometheusMetrics(plan, remaining, executor.workers)]
            Dispatcher(remaining, folder, executor, callbacks, running.Limits(), lambda: False).run()
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rss = psutil.Process().memory_info().rss
    found = {"shards": plan.shard_count, "jobs": len(plan.jobs), "seconds_traced": round(seconds, 1)}
    return {**found, "python_peak": peak, "rss": rss, "rss_before_planning": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=GPUS, help="of the 64, as many as are used")
    gpus = parser.parse_args().gpus
    of_driver = memory(SHARDS)
    print(f"driver with {of_driver['shards']:,} shards: {of_driver['rss'] / 2**20:.0f} MiB resident, ", end="")
    print(f"{of_driver['python_peak'] / 2**20:.0f} MiB of Python objects at most", flush=True)
    of_gpus = busy(gpus, int(gpus * SHARDS_PER_GPU))
    print(f"{of_gpus['shards']:,} shards of 10 s on {gpus} GPUs: busy {of_gpus['busy']:.1%} of {of_gpus['makespan']} s")
    print(write_result("busy", {"gpus": of_gpus, "driver": of_driver}))


if __name__ == "__main__":
    main()
