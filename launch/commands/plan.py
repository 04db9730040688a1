"""`efface plan`: what a campaign would do, and what it would cost."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.launch.arguments.options import CampaignArgument, OverridesOption, RunFolderOption
from efface.launch.arguments.output_files import optional_path
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line, print_table, print_warnings

if TYPE_CHECKING:
    from efface.cluster.campaign.cost import Estimate
    from efface.cluster.campaign.plan import Model, Plan
    from efface.cluster.storage.remaining import RemainingTasks


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Show what a campaign would do and cost: jobs, shards, images, hours, disk, and what is done already."""

    campaign: CampaignArgument
    out: RunFolderOption = None
    overrides: OverridesOption = field(default_factory=list)
    rates: Annotated[
        str | None,
        typer.Option(help="Estimate by these rates: a file, or shipped ones by name; default: measured here."),
    ] = None


@dataclass(frozen=True)
class Amounts:
    """How much work: trainings, shards of images, images."""

    jobs: int
    shards: int
    images: int


@dataclass(frozen=True)
class PlannedModel:
    """A model of the plan, the base among them.

    state: `done`, `failed`, `left` (not trained yet), or how many shards of it are left.
    """

    id: str
    method: str
    concepts: tuple[str, ...]
    seed: int | None
    shards: int
    images: int
    state: str


@dataclass(frozen=True)
class PromptsToFind:
    """Concepts whose adversarial prompts the run finds for itself; and those of which earlier runs have found them."""

    concepts: int
    known: int


@dataclass(frozen=True)
class PlanReport:
    """A campaign's plan, held against its run folder.

    provisional: the base is not known before it is fetched, so ids will change and nothing counts as done. warnings:
    what should be known before the results are believed. estimate: None where no rates are known of this machine's
    device. axes: that are asked; without all five there is no ERR.
    """

    campaign: str
    base: str
    provisional: bool
    axes: tuple[str, ...]
    searched: "PromptsToFind"
    all: Amounts
    left: Amounts
    warnings: tuple[str, ...]
    estimate: "Estimate | None"
    models: tuple[PlannedModel, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "campaign": self.campaign,
            "provisional": self.provisional,
            "axes": list(self.axes),
            "adversarial_prompts": asdict(self.searched),
            "all": asdict(self.all),
            "left": asdict(self.left),
            "estimate": self.estimate.as_json() if self.estimate else None,
            "warnings": list(self.warnings),
            "models": [asdict(model) for model in self.models],
        }


def run(options: PlanOptions) -> PlanReport:
    """Plan the campaign; nothing is written or fetched. Raises UserError."""
    from efface.cluster.campaign.cost import estimate
    from efface.cluster.campaign.planner import plan_campaign
    from efface.cluster.campaign.rates import rates_for
    from efface.cluster.campaign.spec import read_campaign
    from efface.cluster.storage.prompt_cache import cached, prompt_tasks
    from efface.cluster.storage.remaining import remaining_tasks
    from efface.cluster.storage.run_folder import RunFolder

    plan = plan_campaign(read_campaign(options.campaign, options.overrides), fetch=False)
    left = remaining_tasks(plan, RunFolder(optional_path(options.out) or f"runs/{plan.name}"))
    restorable = {task.id for task in prompt_tasks(plan.tasks) if cached(task)}
    left.tasks = [task for task in left.tasks if task.id not in restorable]
    rates = rates_for(plan, options.rates)
    return PlanReport(
        campaign=plan.name,
        base=plan.base.name,
        provisional=plan.provisional,
        axes=plan.axes,
        searched=PromptsToFind(len(plan.prompt_checks), sum(check.id in restorable for check in plan.prompt_checks)),
        all=Amounts(len(plan.jobs), plan.shard_count, plan.images),
        left=Amounts(len(left.trainings), len(left.shards), sum(len(shard.eval_requests) for shard in left.shards)),
        warnings=plan.warnings,
        estimate=estimate(plan, left.tasks, rates) if rates else None,
        models=_models(plan, left),
    )


def show(report: PlanReport) -> None:
    header = ("model", "method", "concepts", "seed", "shards", "images", "state")
    print_table(header, [list(vars(model).values()) for model in report.models])
    left, all_of_it = asdict(report.left), asdict(report.all)
    print(", ".join(f"{left[what]} of {all_of_it[what]} {what}" for what in all_of_it) + " left to do")
    print_line(_axes_line(report))
    if report.estimate:
        for line in report.estimate.describe():
            print_line(line)
    else:
        from efface.config_files import list_configs

        known = ", ".join(list_configs("rates"))
        print_line(f"no rates are known of this machine's device: --rates takes {known}, or a file")
    if report.provisional:
        print_line(f"base '{report.base}' is unknown until fetched: ids are provisional, and nothing counts as done")
    print_warnings(report.warnings)


COMMAND = Command("plan", PlanOptions, run, show, as_json=PlanReport.as_json)


def _axes_line(report: PlanReport) -> str:
    """`axes: forget, …: all five, so there is an ERR`."""
    from efface.concepts.prompts import AXES

    missing = [axis for axis in AXES if axis not in report.axes]
    verdict = f"no {', no '.join(missing)}, and so no ERR" if missing else "all five, so there is an ERR"
    found = report.searched
    known = f", {found.known} of them known from earlier runs" if found.known else ""
    searched = f"; adversarial prompts are found for {found.concepts} concepts{known}" if found.concepts else ""
    return f"axes: {', '.join(report.axes)}: {verdict}{searched}"


def _models(plan: "Plan", left: "RemainingTasks") -> tuple[PlannedModel, ...]:
    untrained = {task.id for task in left.trainings}
    failed_or_blocked = {model.id for model in (*left.failed, *left.blocked)}
    shards_left = Counter(shard.model.id for shard in left.shards)

    def state(model: "Model") -> str:
        if model.id in failed_or_blocked:
            return "failed"
        if model.id in untrained:
            return "left"
        count = shards_left[model.id]
        return f"{count} shard{'' if count == 1 else 's'} left" if count else "done"

    return tuple(
        PlannedModel(
            id=model.id,
            method=model.label,
            concepts=tuple(model.job.concepts) if model.job else (),
            seed=model.job.seed if model.job else None,
            shards=len(plan.shards[model.id]),
            images=sum(len(shard.eval_requests) for shard in plan.shards[model.id]),
            state=state(model),
        )
        for model in plan.models
    )
