"""What a campaign adds to a job: `python -m benchmarks.overhead` writes benchmarks/results/overhead.json, in minutes.

The same jobs of the miniature, UCE and two steps of ESD, are done by calling `run_job` and by a warm Ray worker through
`dispatch`, which also saves the delta, measures the change of the weights and writes record, log and journal. Overhead
is the difference of the medians of ten.
"""

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_result
from efface.cluster.campaign.spec import Campaign, read_campaign
from efface.cluster.run import Run, open_run, worker_context
from efface.cluster.scheduler.dispatch import dispatch
from efface.cluster.storage.journal import Journal
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.workers.ray_executor import RayExecutor
from efface.config_files import parse
from efface.models.base import load_base
from efface.train.run_job import run_job

JOBS = 10
METHODS = [
    {"method": "uce", "preset": "miniature"},
    {"method": "esd", "preset": "miniature", "config": {"steps": 2}},
]


class Ends:
    """A callback that notes when jobs end."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def started(self, worker: int, task: Task) -> None:
        pass

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        assert outcome.is_done, outcome
        self.at.append(time.perf_counter())

    def tick(self) -> None:
        pass


def one_more(method: dict[str, Any]) -> Campaign:
    """A campaign of one job more than is measured, for the first one warms up."""
    data = read_campaign("demo").model_dump(mode="json")
    changes = {"methods": [method], "concepts": {"targets": ["cat"]}, "seeds": list(range(JOBS + 1))}
    return parse(Campaign, {**data, **changes}, "overhead")


def through_dispatch(run: Run) -> list[float]:
    """Seconds from the end of one job to the end of the next."""
    ends = Ends()
    remaining = RemainingTasks(list(run.plan.trainings), run.plan.products)
    with (
        contextlib.closing(RayExecutor(worker_context(run), 1)) as executor,
        contextlib.closing(Journal(run.folder)) as log,
    ):
        dispatch(remaining, run.folder, executor, [ends, log])
    return [after - before for before, after in zip(ends.at, ends.at[1:], strict=False)]


def called(run: Run, models: tuple[Model, ...]) -> list[float]:
    """Seconds of the bare function for each job but the first."""
    torch.set_num_threads(run.plan.resources.cpus)
    base = load_base(run.plan.base)
    seconds = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as cache:
        for model in models:
            assert model.job
            start = time.perf_counter()
            run_job(model.job, base, run.plan.concept_set, cache=Path(cache))
            seconds.append(time.perf_counter() - start)
    return seconds[1:]


def measure(method: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="overhead-") as root:
        run = open_run(one_more(method), Path(root, "run"))
        bare = called(run, run.plan.jobs)
        whole = through_dispatch(run)
    medians = {"called": statistics.median(bare), "through_dispatch": statistics.median(whole)}
    overhead = medians["through_dispatch"] - medians["called"]
    rounded = {name: round(value, 4) for name, value in {**medians, "overhead": overhead}.items()}
    return {**rounded, "ratio": round(medians["through_dispatch"] / medians["called"], 3), "jobs": len(whole)}


def main() -> None:
    # Else Ray has its workers wait for all else on a machine that has more to do.
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    found = {}
    for method in METHODS:
        found[method["method"]] = of = measure(method)
        print(
            f"{method['method']}: {of['called']:.3f} s called, {of['through_dispatch']:.3f} s through dispatch, ",
            end="",
        )
        print(f"{of['overhead']:.3f} s more ({of['ratio']:.2f} x)", flush=True)
    print(write_result("overhead", found, load=[round(load, 1) for load in os.getloadavg()]))


if __name__ == "__main__":
    main()
