"""Run a campaign: plan, see what is missing, do it on Ray or in this process, and put the results together."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel
from rich.console import Console

from efface.cluster.campaign import HOW, Campaign, DeltaEvaluation, Limits
from efface.cluster.dispatch import Remaining, dispatch, remaining
from efface.cluster.executors import Executor, InProcess, RayActors, WorkerClass
from efface.cluster.expand import plan_campaign, plan_deltas
from efface.cluster.journal import Journal
from efface.cluster.learned_rates import learn_from
from efface.cluster.lease import Lease
from efface.cluster.metrics import Metrics
from efface.cluster.plan import Plan
from efface.cluster.progress import Display
from efface.cluster.results import Results, gather
from efface.cluster.run_folder import RunFolder
from efface.cluster.worker import Setting, Worker
from efface.errors import JobFailure, StorageError, UserError
from efface.files import content_id, is_remote
from efface.models.delta import Delta
from efface.strict import read_strict

ROUNDS = 4
"""How often files found damaged at the end are made again."""


@dataclass(frozen=True)
class Run:
    """A plan and the folder it is carried out in."""

    plan: Plan
    folder: RunFolder
    limits: Limits = field(default_factory=Limits)
    setup: Mapping[str, Any] = field(default_factory=dict)

    @property
    def remaining(self) -> Remaining:
        return remaining(self.plan, self.folder)


def open_run(campaign: Campaign, out: Path | None) -> Run:
    """The run of a campaign in `out` (default `runs/NAME`), made ready. Raises UserError."""
    plan = plan_campaign(campaign)
    folder = RunFolder(out or Path("runs") / campaign.name)
    folder.open(folder.campaign, _yaml(campaign), HOW)
    return Run(plan, folder, campaign.limits, campaign.setup)


def reopen_run(root: Path) -> Run:
    """The run that a folder holds. Raises UserError where it holds none."""
    folder = RunFolder(root)
    folder.must_exist()
    campaign = read_strict(Campaign, folder.campaign)
    return Run(plan_campaign(campaign), folder, campaign.limits, campaign.setup)


def open_evaluation(deltas: Sequence[tuple[Path, Delta]], wanted: DeltaEvaluation, out: Path | None) -> Run:
    """The run that judges deltas which exist, in `out` (default `runs/evaluation-ID`). Raises UserError."""
    from efface.eval.weight_change import weight_change
    from efface.models.base import load_base

    plan = plan_deltas(deltas, wanted)
    folder = RunFolder(out or Path("runs") / f"evaluation-{content_id(sorted(model.id for model in plan.jobs))}")
    folder.open(folder.evaluation, _yaml(wanted), HOW)
    base = None
    for model, (_, delta) in zip(plan.jobs, deltas, strict=True):
        if model.job and not folder.record(model):
            base = base or load_base(plan.base)
            delta.save(folder.delta(model))
            facts = {
                "job": model.job.model_dump(mode="json"),
                "metrics": {},
                "weight_change": weight_change(base, delta),
            }
            folder.finish(model, [folder.delta(model)], label=model.label, **facts)
    return Run(plan, folder, wanted.limits)


def carry_out(
    run: Run, workers: int | None, address: str | None, console: Console, worker: WorkerClass = Worker
) -> Results:
    """Do what is missing, then score. `workers`: at most so many; 0: in this process, without Ray.

    Raises UserError where another driver is at work on the run, and Stopped where it was laid down on the way.
    """
    results = _done(run)
    if results:
        return results
    with Lease(run.folder.root) as lease, asked_to_stop(console) as asked:
        wish = run.folder.wish()

        def stopping() -> bool:
            if lease.lost:
                raise StorageError(f"{run.folder.root}: {lease.lost}")
            if asked and run.folder.wish() == wish:
                run.folder.wish_to_stop()  # workers elsewhere hear of it
            return run.folder.wish() not in (None, wish)

        for _ in range(ROUNDS):
            left = run.remaining
            if not left.nothing:
                _do(run, left, workers, address, console, stopping, worker)
            results = _done(run)
            if results:
                return results
    raise JobFailure(f"{run.folder.root}: files there change after they are written, so the run cannot be finished")


def _done(run: Run) -> Results | None:
    """What the run came to, if nothing of it is left to do and no file was damaged."""
    return gather(run.plan, run.folder) if run.remaining.nothing else None


def carry_out_part(run: Run, number: int, parts: int, console: Console) -> int:
    """Do what is missing of one part of several, in this process, and say how many jobs of it have failed.

    Parts run side by side without knowing of each other. When all are through, `carry_out` has nothing left to do but
    to score.
    """
    if not 1 <= number <= parts:
        raise UserError(f"--part {number}/{parts}: should be 1/{parts} to {parts}/{parts}")
    part = replace(run, plan=run.plan.part(number, parts))
    with asked_to_stop(console) as asked:
        wish = run.folder.wish()
        for _ in range(ROUNDS):
            left = part.remaining
            if left.nothing:
                return len(left.failed)
            _do(part, left, 0, None, console, lambda: bool(asked) or run.folder.wish() not in (None, wish))
    raise JobFailure(f"{run.folder.root}: files there change after they are written, so the part cannot be finished")


def _do(
    run: Run,
    left: Remaining,
    workers: int | None,
    address: str | None,
    console: Console,
    stopping: Callable[[], bool],
    worker: WorkerClass = Worker,
) -> None:
    """One time through the remaining work."""
    executor = _executor(run, left, workers, address, stopping, worker)
    with ExitStack() as closing:
        closing.callback(executor.close)
        journal = closing.enter_context(contextlib.closing(Journal(run.folder)))
        display = closing.enter_context(Display(run.plan, left, executor.workers, console))
        metrics = Metrics(run.plan, left, executor.workers)
        dispatch(left, run.folder, executor, [journal, display, metrics], run.limits, stopping)
    learn_from(run.plan, run.folder, left)


@contextmanager
def asked_to_stop(console: Console) -> Iterator[list[int]]:
    """Signals that ask to stop: the first is kept in the list, a second one interrupts at once."""
    asked: list[int] = []

    def hear(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        console.print("laying down: what runs is saved or finished, nothing new begins; once more stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may hear signals
        return
    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _yaml(order: BaseModel) -> str:
    """What was asked for as it was understood, every default written out."""
    return OmegaConf.to_yaml(OmegaConf.create(_literal(order.model_dump(mode="json"))))


def _literal(value: Any) -> Any:
    """`value` with every `${` in it as text, for it is not to be resolved a second time."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    return [_literal(inner) for inner in value] if isinstance(value, list) else value


def setting_of(run: Run) -> Setting:
    """What the workers of a run share."""
    plan, root = run.plan, run.folder.root
    return Setting(
        # An absolute path: an actor's working directory is its own.
        root=str(root if is_remote(root) else root.resolve()),
        base=plan.base,
        base_id=plan.base_id,
        concept_set=plan.concept_set,
        recipe=plan.recipe,
        prompt_set=plan.prompt_set,
        calibrations=plan.calibrations,
        judged=plan.judged,
        cpus=plan.resources.cpus,
        gpus=plan.resources.gpus,
        checkpoint_steps=run.limits.checkpoint_steps,
        wish=run.folder.wish(),
        processes=plan.resources.processes,
        launcher=plan.resources.launcher,
        setup=run.setup,
    )


def _executor(
    run: Run,
    left: Remaining,
    workers: int | None,
    address: str | None,
    stopping: Callable[[], bool],
    worker: WorkerClass,
) -> Executor:
    if workers == 0:
        return InProcess(setting_of(run), stopping, worker)
    setting = setting_of(run)
    if all(job.solved for job in left.jobs):
        setting = replace(setting, processes=1)
    useful = len(left.calibrations) + len(left.jobs) * setting.processes + len(left.shards)
    return RayActors(setting, min(useful, workers or useful), address, worker)


def summary(run: Run) -> dict[str, Any]:
    """How far a run is: counts of jobs and images, done, failed and all."""
    left = run.remaining
    failures = run.folder.failures(run.plan.models)
    made = run.folder.records(run.plan.jobs)
    given_up = {model.id for model in (*left.failed, *left.blocked)}
    images_left = sum(len(shard.questions) for shard in left.shards)
    images_lost = sum(
        len(shard.questions)
        for model in (*left.failed, *left.blocked)
        for shard in run.plan.shards[model.id]
        if not run.folder.record(shard)
    )
    return {
        "campaign": run.plan.name,
        "jobs": {
            "all": len(run.plan.jobs),
            "done": len(made.keys() - given_up),
            "failed": len([model for model in left.failed if model.job]),
            "blocked": len(left.blocked),
            "left": len(left.jobs),
        },
        "images": {
            "all": run.plan.images,
            "done": run.plan.images - images_left - images_lost,
            "lost": images_lost,
            "left": images_left,
        },
        "failures": [
            {"job": model.folder, **{key: value for key, value in failures[model.id].items() if key != "details"}}
            for model in left.failed
        ],
    }
