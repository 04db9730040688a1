"""A trial of a search: the jobs of one config, and their images judged rung by rung.

Everything is in a run folder under ids of content, so a config that was tried before costs nothing, and a trial that
was interrupted goes on where it was.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.search.result import TrialCost, TrialResult, TrialScores
from efface.cluster.search.spec import Point, Search
from efface.cluster.storage.records import sha256
from efface.cluster.storage.remaining import RemainingTasks, remaining_tasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.judging import VERDICTS, Shard
from efface.cluster.tasks.model import BASE, Model
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingResult
from efface.concepts.prompts import AXES
from efface.errors import StorageError, UserError
from efface.eval.judging.image_table import read_table
from efface.eval.scores.results import Scores as MethodScores
from efface.eval.scores.scoring import score_table
from efface.eval.weight_change_values import mean_weight_change
from efface.files import content_id

FAILED = -1.0
"""The score of a trial that has no model."""


class Trial:
    """One config of a search, what it takes to judge it, and how well it does."""

    def __init__(self, search: Search, folder: RunFolder, point: Point) -> None:
        """Raises UserError where the search asks for what cannot be."""
        self.search, self.folder = search, folder
        self.plan = plan_campaign(search.campaign(point))
        self.rungs = rung_shards(self.plan, search.rungs, search.evaluation.shard_size)

    def remaining(self, rung: int) -> RemainingTasks:
        """What is left to do before the trial has a result on a rung (0, 1, …): first all its jobs, then the images.

        Nothing is left of a trial that has failed, or is over budget.
        """
        training = remaining_tasks(self._part(self.plan.trainings), self.folder)
        if training.failed:
            return RemainingTasks(failed=training.failed)
        if training.tasks:
            return training
        if self._is_over_budget(self._cost()):
            return RemainingTasks()
        return unjudged(self._part((*self.plan.trainings, *self._shards(rung))), self.folder)

    def result(self, rung: int) -> TrialResult:
        """How the trial does on the images up to a rung, once nothing of that remains.

        The score is `err_mean`, in [0, 1]. A trial over the budget scores below 0, the more the further it is over; one
        that has failed scores FAILED.
        """
        failures = self.folder.failures(self.plan.jobs)
        if failures:
            return failed(next(iter(failures.values())).reason)
        cost = self._cost()
        if self._is_over_budget(cost):
            assert self.search.max_weight_change is not None
            return TrialResult("over budget", self.search.max_weight_change / cost.weight_change - 1, cost)
        try:
            found = score_table(_verdicts(self.folder, self._shards(rung)), method=self.plan.jobs[0].label)
        except StorageError:
            raise
        except UserError as error:  # too many verdicts that could not be read
            return failed(str(error))
        axes = {str(axis): score for axis, score in found.axes.items()}
        scores = TrialScores(found.err_mean, found.intervals.err_mean, axes, self.search.rungs[rung])
        return TrialResult("judged", scores.err_mean, cost, scores)

    def _shards(self, rung: int) -> list[Shard]:
        return [shard for part in self.rungs[: rung + 1] for shard in part if shard.model.job]

    def _part(self, tasks: Sequence[Task]) -> Plan:
        return replace(self.plan, models=self.plan.jobs, tasks=tuple(tasks))

    def _is_over_budget(self, cost: TrialCost) -> bool:
        budget = self.search.max_weight_change
        return budget is not None and cost.weight_change > budget

    def _cost(self) -> TrialCost:
        """Of a trial whose jobs are all done."""
        records = self.folder.records(self.plan.trainings)
        trained = [TrainingResult.model_validate(records[task.id].facts) for task in self.plan.trainings]
        changes = mean_weight_change([result.weight_change for result in trained]).all
        return TrialCost(
            weight_change=changes.relative_l2,
            challenge=changes.challenge,
            seconds=sum(record.seconds or 0.0 for record in records.values()),
            jobs=tuple(model.folder for model in self.plan.jobs),
        )


def failed(reason: str) -> TrialResult:
    """Of a trial that cannot be trained or judged."""
    return TrialResult("failed", FAILED, reason=reason)


def base_plan(plan: Plan) -> Plan:
    """The part of a trial's plan that all trials share: the judge's calibration, and the base's own images."""
    return plan.only(plan.models[:1])


def base_scores(plan: Plan, folder: RunFolder) -> MethodScores:
    """The scores of the unedited base on the images of the last rung, once all of them are judged."""
    return score_table(_verdicts(folder, plan.shards[plan.models[0].id]), method=BASE)


def unjudged(plan: Plan, folder: RunFolder) -> RemainingTasks:
    """What remains of a plan, shards included whose verdicts are not as they were written."""
    remaining = remaining_tasks(plan, folder)
    if remaining.is_empty:
        remaining.tasks = [shard for shard in plan.of_kind(Shard) if not _has_verdicts(shard, folder)]
    return remaining


def _has_verdicts(shard: Shard, folder: RunFolder) -> bool:
    """Whether every byte of a shard's verdicts is as its record says."""
    record, path = folder.record(shard), folder.output(shard, VERDICTS)
    return record is not None and sha256(path) == record.outputs[path.name].sha256


def rung_shards(plan: Plan, rungs: tuple[int, ...], size: int) -> list[list[Shard]]:
    """By rung, what is judged on it of every model and on none before: the images of the seeds that are new there."""
    return [
        [shard for model in plan.models for shard in _rung_shards(plan, model, rung, range(before, until), size)]
        for rung, (before, until) in enumerate(zip((0, *rungs), rungs, strict=False))
    ]


def _rung_shards(plan: Plan, model: Model, rung: int, seeds: range, size: int) -> Iterator[Shard]:
    questions = [
        question for shard in plan.shards[model.id] for question in shard.eval_requests if question.seed in seeds
    ]
    judged_by = [plan.recipe.id, *(calibration.id for calibration in plan.calibrations)]
    requires = next((shard.requires for shard in plan.shards[model.id]), ())
    for number, start in enumerate(range(0, len(questions), size)):
        part = tuple(questions[start : start + size])
        what = [[q.prompt, q.seed, [[a.concept, a.axis, a.asked_concept] for a in q.asks]] for q in part]
        yield Shard(model, rung * 1000 + number, part, content_id([model.id, model.label, judged_by, what]), requires)


def check_axes(plan: Plan) -> None:
    """Raises UserError where an axis would have no images, and so no trial an ERR."""
    axes = {a.axis for model in plan.jobs for s in plan.shards[model.id] for q in s.eval_requests for a in q.asks}
    missing = [axis for axis in AXES if axis not in axes]
    if missing:
        raise UserError(
            f"search '{plan.name}': nothing is asked on the axis {missing[0]}, and without it there is no ERR; "
            "give a prompt set that has it as evaluation.prompts, and no limit of 0"
        )


def _verdicts(folder: RunFolder, shards: Sequence[Shard]) -> pa.Table:
    return pa.concat_tables([read_table(folder.output(shard, VERDICTS)) for shard in shards])
