"""Search a method's settings: many configs judged on few images, the best on more, and the Pareto front of those.

    efface search esd-miniature

The jobs and shards are those of any campaign, in a run folder under ids of content. Killed and typed again, a search
goes on: the configs of its ledger come first, and what is done of them is not done again.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.text import Text

from efface.cluster.campaign import HOW
from efface.cluster.candidate import Candidate, base_score, check_axes
from efface.cluster.dispatch import dispatch, remaining
from efface.cluster.executors import RayActors, start_or_join
from efface.cluster.lease import Lease
from efface.cluster.ledger import Ledger, Row
from efface.cluster.pareto import front_of, rich_table, write_results
from efface.cluster.plan import Plan
from efface.cluster.progress import Display
from efface.cluster.run import Run, asked_to_stop, setting_of
from efface.cluster.run_folder import RunFolder
from efface.cluster.search_space import Search
from efface.cluster.worker import Setting
from efface.errors import JobFailure, Stopped, StorageError, UserError


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    folder: RunFolder
    rows: list[Row]
    """Every trial, in the order they began."""
    front: list[Row]
    base: dict[str, Any]
    """The scores of the unedited base."""

    def show(self, console: Console) -> None:
        """The Pareto front, and where the rest lies."""
        states = [row["state"] for row in self.rows]
        told = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        console.print(f"{len(states)} trials: {', '.join(told)}; the unedited base has ERR {self.base['err_mean']:.3f}")
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
) -> Found:
    """Carry a search out in `out` (default `runs/NAME`); it does what is missing of `trials` (default: the file's).

    `workers`: at most so many trials at a time; default: as many as fit. Raises UserError where the search cannot be,
    or another driver is at work on it, and Stopped where it was laid down on the way.
    """
    _check_installed()
    folder = RunFolder(out or Path("runs") / search.name)
    first = Candidate(search, folder, {name: dimension.probes[0] for name, dimension in search.space.items()})
    check_axes(first.plan)
    order = search.model_dump(mode="json", exclude={"evaluation": {"images_per_prompt"}})
    folder.open(folder.root / "search.yaml", OmegaConf.to_yaml(OmegaConf.create(order)), [*HOW, "trials"])
    wanted = trials or search.trials
    base_only = _base_only(first.plan)
    if not (Ledger(folder).whole(wanted) and remaining(base_only, folder).nothing):
        with Lease(folder.root) as lease:
            _carry_on(
                search, Run(first.plan, folder, search.limits), base_only, wanted, workers, address, lease, console
            )
    rows = Ledger(folder).rows
    front = front_of(rows, search.rungs[-1])
    base = base_score(first.plan, folder)
    write_results(folder, rows, front, base)
    return Found(folder, rows, front, base)


def _carry_on(
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
    from efface.cluster.search_tune import climb  # needs Ray Tune and Optuna

    folder, wish = run.folder, run.folder.wish()
    ledger = Ledger(folder, lambda row: console.print(_line(row), soft_wrap=True))
    with asked_to_stop(console) as signals, _ray(search, address) as scratch:

        def asked() -> bool:
            if lease.lost:
                raise StorageError(f"{folder.root}: {lease.lost}")
            if signals and folder.wish() == wish:
                folder.wish_to_stop()  # workers hear of it
            return folder.wish() != wish

        setting = setting_of(run)
        at_once = min(workers or trials, trials, _fitting(setting))
        _judge_base(base_only, search, folder, setting, at_once, console, asked)
        climb(search, setting, trials, at_once, ledger, scratch, asked)
        if asked():
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

    with tempfile.TemporaryDirectory(prefix="efface-ray-", ignore_cleanup_errors=True) as scratch:
        start_or_join(address or os.environ.get("RAY_ADDRESS"), search.resources.cpus, scratch)
        try:
            yield scratch
        finally:
            ray.shutdown()


def _base_only(plan: Plan) -> Plan:
    """The calibration of the judge, and the base's own images."""
    base = plan.models[0]
    return replace(plan, models=(base,), shards={base.id: plan.shards[base.id]})


def _fitting(setting: Setting) -> int:
    """How many workers the cluster has room for; 1 where it has none now."""
    import ray

    total = ray.cluster_resources()
    need = {"CPU": float(setting.cpus), "GPU": setting.gpus}
    return max(1, min(int(total.get(name, 0) // amount) for name, amount in need.items() if amount))


def _judge_base(
    plan: Plan,
    search: Search,
    folder: RunFolder,
    setting: Setting,
    workers: int,
    console: Console,
    asked: Callable[[], bool],
) -> None:
    """Calibrate the judge and judge the base, by the driver of campaigns. Raises JobFailure where that fails."""
    folder.forgive(plan.models[0])
    left = remaining(plan, folder)
    if left.nothing:
        return
    executor = RayActors(setting, workers)
    with ExitStack() as closing:
        closing.callback(executor.close)
        display = closing.enter_context(Display(plan, left, executor.workers, console))
        dispatch(left, folder, executor, [display], search.limits, asked)
    failure = folder.failure(plan.models[0])
    if failure:
        raise JobFailure(f"the unedited base cannot be judged: {failure['reason']}")


def _line(row: Row) -> Text:
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
