"""Search a method's settings: many configs judged on few images, the best on more, and the Pareto front of those.

    efface search esd-miniature

The jobs and shards are those of any campaign, in a run folder under ids of content. Killed and typed again, a search
goes on: the configs of its ledger come first, and what is done of them is not done again.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.text import Text

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import MUTABLE_KEYS
from efface.cluster.run import Run, worker_context
from efface.cluster.scheduler.dispatch import dispatch, remaining_tasks
from efface.cluster.scheduler.progress import Display
from efface.cluster.search.ledger import Ledger, TrialRow
from efface.cluster.search.pareto import front_of, rich_table, write_results
from efface.cluster.search.spec import Search
from efface.cluster.search.trial import Trial, base_score, check_axes
from efface.cluster.signals import stop_signals
from efface.cluster.storage.lease import Lease
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.workers.ray_executor import RayExecutor
from efface.cluster.workers.ray_session import init_ray, ray_scratch
from efface.cluster.workers.worker import WorkerContext
from efface.errors import JobFailure, Stopped, StorageError, UserError


@dataclass(frozen=True)
class SearchResults:
    """What a search came to."""

    folder: RunFolder
    rows: list[TrialRow]
    """Every trial, in the order they began."""
    front: list[TrialRow]
    base: dict[str, Any]
    """The scores of the unedited base."""

    def show(self, console: Console) -> None:
        """The Pareto front, and where the rest lies."""
        states = [row["state"] for row in self.rows]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        console.print(
            f"{len(states)} trials: {', '.join(counts)}; the unedited base has ERR {self.base['err_mean']:.3f}"
        )
        if self.front:
            console.print("Pareto front of ERR, weight change and training time, judged on all images:")
            console.print(rich_table(self.front))
        else:
            console.print("no trial was judged on all images: give more trials, or a wider max_weight_change")
        for name in ("pareto.csv", "pareto.json", "trials.csv"):
            console.print(str(self.folder.root / name), soft_wrap=True, markup=False)


def run_search(
    search: Search,
    out: str | Path | None,
    trials: int | None,
    workers: int | None,
    address: str | None,
    console: Console,
) -> SearchResults:
    """Carry a search out in `out` (default `runs/NAME`); it does what is missing of `trials` (default: the file's).

    `workers`: at most so many trials at a time; default: as many as fit. Raises UserError where the search cannot be,
    or another driver is at work on it, and Stopped where it was laid down on the way.
    """
    _check_installed()
    folder = RunFolder(out or Path("runs") / search.name)
    first = Trial(search, folder, {name: dimension.probes[0] for name, dimension in search.space.items()})
    check_axes(first.plan)
    config = search.model_dump(mode="json", exclude={"evaluation": {"images_per_prompt"}})
    folder.open(folder.root / "search.yaml", OmegaConf.to_yaml(OmegaConf.create(config)), [*MUTABLE_KEYS, "trials"])
    trial_count = trials or search.trials
    base_only = _base_only(first.plan)
    if not (Ledger(folder).is_complete(trial_count) and remaining_tasks(base_only, folder).is_empty):
        with Lease(folder.root) as lease:
            _resume(
                search, Run(first.plan, folder, search.limits), base_only, trial_count, workers, address, lease, console
            )
    rows = Ledger(folder).rows
    front = front_of(rows, search.rungs[-1])
    base = base_score(first.plan, folder)
    write_results(folder, rows, front, base)
    return SearchResults(folder, rows, front, base)


def _resume(
    search: Search,
    run: Run,
    base_only: Plan,
    trials: int,
    workers: int | None,
    address: str | None,
    lease: Lease,
    console: Console,
) -> None:
    """Do what is missing. Raises Stopped where it was laid down."""
    from efface.cluster.search.tune import run_tune  # needs Ray Tune and Optuna

    folder, stop_request = run.folder, run.folder.stop_request()
    ledger = Ledger(folder, lambda row: console.print(_summary_line(row), soft_wrap=True))
    with stop_signals(console) as signals, _ray(search, address) as scratch:

        def should_stop() -> bool:
            if lease.lost:
                raise StorageError(f"{folder.root}: {lease.lost}")
            if signals and folder.stop_request() == stop_request:
                folder.request_stop()  # workers hear of it
            return folder.stop_request() != stop_request

        context = worker_context(run)
        at_once = min(workers or trials, trials, _max_concurrent_trials(context))
        _judge_base(base_only, search, folder, context, at_once, console, should_stop)
        run_tune(search, context, trials, at_once, ledger, scratch, should_stop)
        if should_stop():
            raise Stopped("laid down; what is finished is kept, the same command goes on from there")


def _check_installed() -> None:
    try:
        import optuna  # noqa: F401
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise UserError(f"a search needs Ray Tune and Optuna: pip install 'efface[search]' ({error})") from None


@contextmanager
def _ray(search: Search, address: str | None) -> Iterator[str]:
    """A Ray to work on, joined or started for the block; and a folder for what Tune writes on its way."""
    import ray

    with ray_scratch() as scratch:
        init_ray(address or os.environ.get("RAY_ADDRESS"), search.resources.cpus, scratch)
        try:
            yield scratch
        finally:
            ray.shutdown()


def _base_only(plan: Plan) -> Plan:
    """The calibration of the judge, and the base's own images."""
    base = plan.models[0]
    return replace(plan, models=(base,), shards={base.id: plan.shards[base.id]})


def _max_concurrent_trials(context: WorkerContext) -> int:
    """How many workers the cluster has room for; 1 where it has none now."""
    import ray

    total = ray.cluster_resources()
    need = {"CPU": float(context.cpus), "GPU": context.gpus}
    return max(1, min(int(total.get(name, 0) // amount) for name, amount in need.items() if amount))


def _judge_base(
    plan: Plan,
    search: Search,
    folder: RunFolder,
    context: WorkerContext,
    workers: int,
    console: Console,
    should_stop: Callable[[], bool],
) -> None:
    """Calibrate the judge and judge the base, by the driver of campaigns. Raises JobFailure where that fails."""
    folder.clear_failure(plan.models[0])
    remaining = remaining_tasks(plan, folder)
    if remaining.is_empty:
        return
    executor = RayExecutor(context, workers)
    with ExitStack() as closing:
        closing.callback(executor.close)
        display = closing.enter_context(Display(plan, remaining, executor.workers, console))
        dispatch(remaining, folder, executor, [display], search.limits, should_stop)
    failure = folder.failure(plan.models[0])
    if failure:
        raise JobFailure(f"the unedited base cannot be judged: {failure['reason']}")


def _summary_line(row: TrialRow) -> Text:
    """A trial in a line of the log."""
    point = ", ".join(f"{name}={_short(value)}" for name, value in row["point"].items())
    line = Text(f"trial {row['number']} ({point}): ")
    if row["state"] == "judged":
        line.append(f"ERR {row['err_mean']:.3f} on {row['images_per_prompt']} images a prompt, ")
        line.append(f"change {row['weight_change']:.1e}, {row['seconds']:.0f} s of training")
    elif row["state"] == "over budget":
        line.append("over budget", "yellow").append(f", change {row['weight_change']:.1e}; not judged")
    else:
        line.append(row["state"], "red").append(f": {row['reason']}")
    return line


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
