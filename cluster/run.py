"""Run a campaign: plan, see what is missing, do it on Ray or in this process, and put the results together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel
from rich.console import Console

from efface.cluster.campaign import Campaign, DeltaEvaluation, read_campaign
from efface.cluster.dispatch import Remaining, dispatch, remaining
from efface.cluster.executors import Executor, InProcess, RayActors
from efface.cluster.expand import plan_campaign, plan_deltas
from efface.cluster.plan import Plan
from efface.cluster.progress import Display
from efface.cluster.results import Results, gather
from efface.cluster.run_folder import RunFolder, Work
from efface.cluster.worker import Setting
from efface.errors import JobFailure
from efface.files import content_id
from efface.models.delta import Delta

ROUNDS = 4
"""How often files found damaged at the end are made again."""


@dataclass(frozen=True)
class Run:
    """A plan and the folder it is carried out in."""

    plan: Plan
    folder: RunFolder

    @property
    def remaining(self) -> Remaining:
        return remaining(self.plan, self.folder)


def open_run(campaign: Campaign, out: Path | None) -> Run:
    """The run of a campaign in `out` (default `runs/NAME`), made ready. Raises UserError."""
    plan = plan_campaign(campaign)
    folder = RunFolder(out or Path("runs") / campaign.name)
    folder.open(folder.campaign, _yaml(campaign))
    return Run(plan, folder)


def reopen_run(root: Path) -> Run:
    """The run that a folder holds. Raises UserError where it holds none."""
    folder = RunFolder(root)
    folder.must_exist()
    return Run(plan_campaign(read_campaign(folder.campaign)), folder)


def open_evaluation(deltas: Sequence[tuple[Path, Delta]], wanted: DeltaEvaluation, out: Path | None) -> Run:
    """The run that judges deltas which exist, in `out` (default `runs/evaluation-ID`). Raises UserError."""
    from efface.eval.weight_change import weight_change
    from efface.models.base import load_base

    plan = plan_deltas(deltas, wanted)
    folder = RunFolder(out or Path("runs") / f"evaluation-{content_id(sorted(model.id for model in plan.jobs))}")
    folder.open(folder.evaluation, _yaml(wanted))
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
    return Run(plan, folder)


def carry_out(run: Run, workers: int | None, address: str | None, console: Console) -> Results:
    """Do what is missing, then score. `workers`: at most so many; 0: in this process, without Ray."""
    for _ in range(ROUNDS):
        left = _undamaged(run)
        if left.nothing:
            return gather(run.plan, run.folder)
        executor = _executor(run, left, workers, address)
        try:
            with Display(run.plan, left, executor.workers, console) as display:
                dispatch(left, run.folder, executor, display)
        finally:
            executor.close()
    raise JobFailure(f"{run.folder.root}: files there change after they are written, so the run cannot be finished")


def _yaml(order: BaseModel) -> str:
    """What was asked for as it was understood, every default written out."""
    return OmegaConf.to_yaml(OmegaConf.create(order.model_dump(mode="json")))


def _executor(run: Run, left: Remaining, workers: int | None, address: str | None) -> Executor:
    resources = run.plan.resources
    setting = Setting(
        root=str(run.folder.root.resolve()),
        base=run.plan.base,
        base_id=run.plan.base_id,
        concept_set=run.plan.concept_set,
        recipe=run.plan.recipe,
        prompt_set=run.plan.prompt_set,
        calibrations=run.plan.calibrations,
        judged=run.plan.judged,
        cpus=resources.cpus,
        gpus=resources.gpus,
    )
    if workers == 0:
        return InProcess(setting)
    useful = len(left.calibrations) + len(left.jobs) + len(left.shards)
    return RayActors(setting, min(useful, workers or useful), address)


def _undamaged(run: Run) -> Remaining:
    """What remains to be done; finished files whose bytes have changed count as not done."""
    shards = (shard for shards in run.plan.shards.values() for shard in shards)
    everything: tuple[Work, ...] = (*run.plan.calibrations, *run.plan.jobs, *shards)
    for work in everything:
        run.folder.damaged(work)
    return run.remaining


def summary(run: Run) -> dict[str, Any]:
    """How far a run is: counts of jobs and images, done, failed and all."""
    left = run.remaining
    failed = {model.id for model in left.failed if model.job}
    images_left = sum(len(shard.questions) for shard in left.shards)
    images_lost = sum(
        len(shard.questions)
        for model in left.failed
        for shard in run.plan.shards[model.id]
        if not run.folder.record(shard)
    )
    return {
        "campaign": run.plan.name,
        "jobs": {
            "all": len(run.plan.jobs),
            "done": len(run.plan.jobs) - len(left.jobs) - len(failed),
            "failed": len(failed),
            "left": len(left.jobs),
        },
        "images": {
            "all": run.plan.images,
            "done": run.plan.images - images_left - images_lost,
            "lost": images_lost,
            "left": images_left,
        },
        "failures": [
            {"job": model.folder, **{key: value for key, value in failure.items() if key != "details"}}
            for model in left.failed
            if (failure := run.folder.failure(model))
        ],
    }
