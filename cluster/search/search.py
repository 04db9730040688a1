"""Search a method's settings: many configs judged on few images, the best on more, and the Pareto front of those.

    efface search esd-miniature

The jobs and shards are those of any campaign, in a run folder under ids of content. Killed and typed again, a search
goes on: its study knows every config it tried, and what is done of them is not done again.
"""

import contextlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import MUTABLE_KEYS
from efface.cluster.run import Run, make_executor, stop_condition
from efface.cluster.scheduler.dispatch import dispatch
from efface.cluster.search.pareto import front_of, rich_table, short, write_results
from efface.cluster.search.result import TrialRow
from efface.cluster.search.spec import Search
from efface.cluster.search.trial import Trial, base_plan, base_scores, check_axes, unjudged
from efface.cluster.search.trial_source import TrialSource
from efface.cluster.signals import stop_signals
from efface.cluster.storage.journal import Journal
from efface.cluster.storage.lease import Lease
from efface.cluster.storage.prompt_cache import keep, restore
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.workers.executor import WorkerClass
from efface.cluster.workers.worker import Worker
from efface.config_files import to_yaml
from efface.errors import UserError
from efface.eval.scores.results import Scores
from efface.text import shown

if TYPE_CHECKING:
    from efface.cluster.search.study import Study


@dataclass(frozen=True)
class SearchResults:
    """What a search came to."""

    folder: RunFolder
    rows: list[TrialRow]
    """Every trial, in the order they began."""
    front: list[TrialRow]
    base: Scores
    """The scores of the unedited base."""

    def show(self, console: Console) -> None:
        """Print the Pareto front, and which files hold the rest."""
        states = [row.result.state for row in self.rows]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        console.print(f"{len(states)} trials: {', '.join(counts)}; the unedited base has ERR {self.base.err_mean:.3f}")
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
    worker: WorkerClass = Worker,
) -> SearchResults:
    """Execute what is missing of a search of `trials` (default: the file's) in `out` (default `runs/NAME`).

    `workers`: at most so many; default: as many as fit; 0: in this process, without Ray. Raises UserError where the
    search cannot be, or another driver works on it, and Stopped where it was asked to stop on the way.
    """
    _check_installed()
    from efface.cluster.search.study import Study  # needs Optuna

    folder = RunFolder(out or Path("runs") / search.name)
    first = Trial(search, folder, {name: dimension.probes[0] for name, dimension in search.space.items()}).plan
    check_axes(first)
    for warning in first.warnings:
        console.print(Text.assemble(("note", "yellow"), f": {shown(warning)}"), soft_wrap=True)
    config = search.model_dump(mode="json", exclude={"evaluation": {"images_per_prompt"}})
    folder.open(folder.root / "search.yaml", to_yaml(config), [*MUTABLE_KEYS, "trials"])
    trials = trials or search.trials
    base = base_plan(first)
    study_file = folder.root / "study.jsonl"
    study = Study(search, study_file)
    if not (study.is_complete(trials) and unjudged(base, folder).is_empty):
        with Lease(folder.root) as lease, stop_signals(console) as signals:
            restore(first.tasks, folder)
            study = Study(search, study_file)  # another driver may have gone on with it until now
            if study.damaged:
                console.print(f"{study_file}: damaged; what it lacks is proposed again", soft_wrap=True, markup=False)
            should_stop = stop_condition(folder, lease, signals)
            source = TrialSource(
                search, folder, study, base, trials, lambda row: console.print(_summary_line(row), soft_wrap=True)
            )
            run = Run(first, folder, search.limits)
            with ExitStack() as closing:
                most = _most_tasks(first, base, study, trials)
                executor = make_executor(run, most, workers, address, should_stop, worker)
                closing.callback(executor.close)
                closing.callback(lambda: keep(first.tasks, folder))
                journal = closing.enter_context(contextlib.closing(Journal(folder)))
                dispatch(RemainingTasks(), source, executor, [journal, source], search.limits, should_stop, source)
    rows = study.rows
    front = front_of(rows, search.rungs[-1])
    scores = base_scores(first, folder)
    write_results(folder, rows, front, scores)
    return SearchResults(folder, rows, front, scores)


def _most_tasks(plan: Plan, base: Plan, study: "Study", trials: int) -> RemainingTasks:
    """The most that there is to do at a time: every trial that is left in training, and the base's images."""
    left = sum(not row.ended for row in study.rows) + max(0, trials - len(study))
    return RemainingTasks([*base.tasks, *plan.trainings * left])


def _check_installed() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(f"a search needs Optuna: pip install 'efface[search]' ({error})") from None


def _summary_line(row: TrialRow) -> Text:
    """A trial in a line of the log."""
    result = row.result
    point = ", ".join(f"{name}={short(value)}" for name, value in row.point.items())
    line = Text(f"trial {row.number} ({point}): ")
    if result.state == "judged" and result.scores and result.cost:
        line.append(f"ERR {result.scores.err_mean:.3f} on {result.scores.images_per_prompt} images a prompt, ")
        line.append(f"change {result.cost.weight_change:.1e}, {result.cost.seconds:.0f} s of training")
    elif result.state == "over budget" and result.cost:
        line.append("over budget", "yellow").append(f", change {result.cost.weight_change:.1e}; not judged")
    else:
        line.append(result.state, "red").append(f": {result.reason}")
    return line
