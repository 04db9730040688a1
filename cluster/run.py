"""Run a campaign: plan, see what is missing, do it on Ray or in this process, and collect the results."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from efface.cluster.campaign.attack_tasks import read_control
from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.planner import plan_campaign, plan_deltas
from efface.cluster.campaign.rates import rates_for
from efface.cluster.campaign.sharding import Look
from efface.cluster.campaign.spec import MUTABLE_KEYS, Campaign, DeltaEvaluation, Limits
from efface.cluster.collect_results import DamagedOutputs, collect_results
from efface.cluster.measured_rates import update_measured_rates
from efface.cluster.run_results import Results
from efface.cluster.scheduler.dispatch import dispatch
from efface.cluster.scheduler.progress import Display
from efface.cluster.scheduler.prometheus import PrometheusMetrics
from efface.cluster.signals import stop_signals
from efface.cluster.storage.journal import Journal
from efface.cluster.storage.lease import Lease, held_lease
from efface.cluster.storage.prompt_cache import keep, restore
from efface.cluster.storage.remaining import RemainingTasks, remaining_tasks
from efface.cluster.storage.repair import withdraw_damaged
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.stored_plan import is_campaign, stored_plan
from efface.cluster.tasks.training import training_facts
from efface.cluster.workers.executor import Executor, WorkerClass
from efface.cluster.workers.local_executor import LocalExecutor
from efface.cluster.workers.ray_executor import RayExecutor
from efface.cluster.workers.worker import Worker, WorkerContext
from efface.config_files import read_config, to_yaml
from efface.errors import JobFailure, StorageError, UserError
from efface.eval.weight_change_values import WeightChange
from efface.files import content_id, is_remote
from efface.models.base import BaseSpec
from efface.models.delta import Delta
from efface.train.training_metrics import TrainingMetrics

MAX_ROUNDS = 4
"""How often files found damaged at the end are made again."""


@dataclass(frozen=True)
class Run:
    """A plan and the folder of its results."""

    plan: Plan
    folder: RunFolder
    limits: Limits = field(default_factory=Limits)
    training_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def remaining_tasks(self) -> RemainingTasks:
        return remaining_tasks(self.plan, self.folder)


def open_run(campaign: Campaign, out: Path | None) -> Run:
    """The run of a campaign in `out` (default `runs/NAME`), made ready. Raises UserError."""
    plan = plan_campaign(campaign)
    folder = RunFolder(out or Path("runs") / campaign.name)
    folder.open(folder.campaign, to_yaml(campaign.model_dump(mode="json")), MUTABLE_KEYS)
    for name in {choice.control for choice in campaign.attacks if choice.control}:
        folder.write_control(read_control(name, plan.models))
    return Run(plan, folder, campaign.limits, campaign.training)


def reopen_run(root: Path) -> Run:
    """The run that a folder holds, of a campaign or of `efface evaluate`. Raises UserError where it holds neither."""
    folder = RunFolder(root)
    folder.must_exist()
    if is_campaign(folder):
        campaign = read_config(Campaign, folder.campaign)
        return Run(plan_campaign(campaign), folder, campaign.limits, campaign.training)
    return Run(stored_plan(folder), folder, read_config(DeltaEvaluation, folder.evaluation).limits)


def open_evaluation(
    deltas: Sequence[tuple[Path, Delta]],
    evaluation_config: DeltaEvaluation,
    out: Path | None,
    looks: Sequence[Look] = (),
) -> Run:
    """The run that judges deltas which exist, in `out` (default `runs/evaluation-ID`).

    looks: what is drawn of the images; none: all of them. What was given up of it before is tried again. Raises
    UserError, also where a delta changes no weight.
    """
    plan = plan_deltas(deltas, evaluation_config, looks)
    settings = evaluation_config.model_dump(mode="json", exclude=set(MUTABLE_KEYS))
    id = content_id([sorted(model.id for model in plan.jobs), settings])
    folder = RunFolder(out or Path("runs") / f"evaluation-{id}")
    new = [(task, *given) for task, given in zip(plan.trainings, deltas, strict=True) if not folder.record(task)]
    changes = _weight_changes(plan.base, [(path, delta) for _, path, delta in new])
    folder.open(folder.evaluation, to_yaml(evaluation_config.model_dump(mode="json")), MUTABLE_KEYS)
    for (task, _, delta), change in zip(new, changes, strict=True):
        folder.write_delta(task.model, delta)
        facts = training_facts(task.model, TrainingMetrics(), change)
        folder.finish(task, [folder.delta(task.model)], **facts)
    for model in plan.models:
        folder.clear_failure(model)
    return Run(plan, folder, evaluation_config.limits)


def _weight_changes(spec: BaseSpec, deltas: Sequence[tuple[Path, Delta]]) -> list[WeightChange]:
    """Of each. Raises UserError where one changes nothing, so that nothing can be judged."""
    from efface.eval.metrics.weight_change import weight_change
    from efface.models.base import load_base

    if not deltas:
        return []
    base = load_base(spec)
    for path, delta in deltas:
        if not delta.has_effect(base):
            raise UserError(
                f"{path}: changes no weight of base '{spec.name}' (a relative L2 of 0), so nothing was forgotten"
            )
    return [weight_change(base, delta) for _, delta in deltas]


def execute(
    run: Run, workers: int | None, address: str | None, console: Console, worker: WorkerClass = Worker
) -> Results:
    """Do what is missing, then score. `workers`: at most so many; 0: in this process, without Ray.

    Raises UserError where another driver is at work on the run, and Stopped where it was stopped on the way.
    """
    if run.remaining_tasks.is_empty:
        with contextlib.suppress(DamagedOutputs):  # they are made again, once no other driver can be at work
            return _finish(run)
    with Lease(run.folder.root) as lease, stop_signals(console) as signals:
        should_stop = stop_condition(run.folder, lease, signals)
        restore(run.plan.tasks, run.folder)
        remaining = run.remaining_tasks
        for _ in range(MAX_ROUNDS):
            if not remaining.is_empty:
                _dispatch(run, remaining, workers, address, console, should_stop, worker)
                remaining = run.remaining_tasks
            if remaining.is_empty:
                try:
                    return _finish(run)
                except DamagedOutputs as damage:
                    withdraw_damaged(run.folder, damage.tasks)
                    remaining = run.remaining_tasks
    raise JobFailure(f"{run.folder.root}: files there change after they are written, so the run cannot be finished")


def _finish(run: Run) -> Results:
    """Score a run of which nothing is missing. Raises DamagedOutputs."""
    results = collect_results(run.plan, run.folder)
    run.folder.clear_stop_request()
    return results


def stop_condition(folder: RunFolder, lease: Lease, signals: list[int]) -> Callable[[], bool]:
    """Whether there has been a stop request since now, or one of the `signals`, which becomes one.

    It raises StorageError where the lease is lost.
    """
    stop_request = folder.stop_request()

    def should_stop() -> bool:
        if lease.lost:
            raise StorageError(f"{folder.root}: {lease.lost}")
        if signals and folder.stop_request() == stop_request:
            folder.request_stop()  # so that workers elsewhere stop too
        return folder.stop_request() not in (None, stop_request)

    return should_stop


def execute_part(run: Run, number: int, parts: int, console: Console) -> int:
    """Do what is missing of one part of several, in this process; how many models of it have failed.

    Parts run side by side without knowing of each other. When all are through, `execute` has nothing left to do but
    to score, and to try what attacks found on the models of other parts.
    """
    if not 1 <= number <= parts:
        raise UserError(f"--part {number}/{parts}: should be 1/{parts} to {parts}/{parts}")
    part = replace(run, plan=run.plan.part(number, parts))
    restore(part.plan.tasks, run.folder)
    with stop_signals(console) as signals:
        stop_request = run.folder.stop_request()
        for _ in range(MAX_ROUNDS):
            remaining = part.remaining_tasks
            if remaining.is_empty:
                return len(remaining.failed)
            _dispatch(
                part,
                remaining,
                0,
                None,
                console,
                lambda: bool(signals) or run.folder.stop_request() not in (None, stop_request),
            )
    raise JobFailure(f"{run.folder.root}: files there change after they are written, so the part cannot be finished")


def _dispatch(
    run: Run,
    remaining: RemainingTasks,
    workers: int | None,
    address: str | None,
    console: Console,
    should_stop: Callable[[], bool],
    worker: WorkerClass = Worker,
) -> None:
    """One time through the remaining work."""
    executor = make_executor(run, remaining, workers, address, should_stop, worker)
    with ExitStack() as closing:
        closing.callback(executor.close)
        journal = closing.enter_context(contextlib.closing(Journal(run.folder)))
        rates = rates_for(run.plan)
        display = closing.enter_context(Display(run.plan, remaining, executor.workers, console, run.folder, rates))
        metrics = PrometheusMetrics(run.plan, remaining, executor.workers)
        closing.callback(lambda: keep(run.plan.tasks, run.folder))
        pack = run.plan.resources.pack
        dispatch(remaining, run.folder, executor, [journal, display, metrics], run.limits, should_stop, pack=pack)
    update_measured_rates(run.plan, run.folder, remaining.tasks)


def worker_context(run: Run) -> WorkerContext:
    """What the workers of a run share."""
    plan, root = run.plan, run.folder.root
    return WorkerContext(
        # An absolute path: an actor's working directory is its own.
        root=str(root if is_remote(root) else root.resolve()),
        base=plan.base,
        base_id=plan.base_id,
        concept_set=plan.concept_set,
        recipe=plan.recipe,
        prompt_set=plan.prompt_set,
        calibrations=tuple(replace(calibration, requests=(), parts=()) for calibration in plan.calibrations),
        prompt_checks=plan.prompt_checks,
        judged=plan.judged,
        cpus=plan.resources.cpus,
        gpus=plan.resources.gpus,
        checkpoint_steps=run.limits.checkpoint_steps,
        stop_request=run.folder.stop_request(),
        processes=plan.resources.processes,
        launcher=plan.resources.launcher,
        training_options=run.training_options,
        lease=held_lease(root),
    )


def make_executor(
    run: Run,
    remaining: RemainingTasks,
    workers: int | None,
    address: str | None,
    should_stop: Callable[[], bool],
    worker: WorkerClass = Worker,
) -> Executor:
    """As many workers as `remaining` keeps busy, at most `workers` of them; 0: one in this process."""
    if workers == 0:
        return LocalExecutor(worker_context(run), should_stop, worker)
    context = worker_context(run)
    if not any(task.process_group for task in remaining.tasks):
        context = replace(context, processes=1)
    useful = sum(context.processes if task.process_group else 1 for task in remaining.tasks)
    return RayExecutor(context, min(useful, workers or useful), address, worker)
