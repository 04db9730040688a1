"""A trial of a search: the jobs of one config, and their images judged rung by rung. It knows nothing of Ray.

Everything lies in a run folder under ids of content, so that a config met again costs nothing, and a trial that was
broken off goes on where it was.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.search.spec import Point, Search
from efface.cluster.storage.records import Record
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.judging import VERDICTS, Shard
from efface.cluster.tasks.model import BASE, Model
from efface.cluster.tasks.task import Next, Outcome, Task
from efface.cluster.tasks.training import TrainingResult, TrainingTask
from efface.concepts.prompts import AXES
from efface.errors import JobFailure, Stopped, StorageError, UserError
from efface.eval.image_table import read_table
from efface.eval.metrics.weight_change import mean_weight_change
from efface.eval.scores.scoring import score_table
from efface.files import content_id

FAILED = -1.0
"""The score of a trial that has no model."""

RunTask = Callable[[Task], Outcome]


class Trial:
    """One config of a search, and how well it does."""

    def __init__(self, search: Search, folder: RunFolder, point: Point) -> None:
        """Raises UserError where the search asks for what cannot be."""
        self.search, self.folder = search, folder
        self.plan = plan_campaign(search.campaign(point))
        self.rungs = rung_shards(self.plan, search.rungs, search.evaluation.shard_size)

    def judge(self, rung: int, run_task: RunTask) -> dict[str, Any]:
        """Train what is not trained, judge on the images up to a rung (0, 1, …) what is not judged, and say how it is:

            {"state": "judged", "score": …, "err_mean": …, "interval": [low, high], "axes": {…}, "images_per_prompt": …,
             "weight_change": …, "challenge": …, "seconds": …, "jobs": […]}

        The score is `err_mean`, in [0, 1]. A trial over the budget is not judged ("over budget") and scores below 0,
        the more the further it is over; one that cannot be done scores FAILED ("failed", with its "reason").
        seconds: of one worker, to train all models. Raises Stopped where `run_task` was laid down, and RuntimeError
        where something broke that may work when tried again.
        """
        try:
            records = [self._training_record(task, run_task) for task in self.plan.trainings]
            cost = self._cost(records)
            budget = self.search.max_weight_change
            if budget is not None and cost["weight_change"] > budget:
                return {**cost, "state": "over budget", "score": budget / cost["weight_change"] - 1}
            shards = [shard for part in self.rungs[: rung + 1] for shard in part if shard.model.job]
            done = self.folder.records(shards)
            for shard in shards:
                if shard.id not in done:
                    self._run_task(shard, run_task)
            found = self._scores(shards)
        except JobFailure as failure:
            return {"state": "failed", "score": FAILED, "reason": str(failure)}
        return {
            **cost,
            "state": "judged",
            "score": found["err_mean"],
            "err_mean": found["err_mean"],
            "interval": found["intervals"]["err_mean"],
            "axes": found["axes"],
            "images_per_prompt": self.search.rungs[rung],
        }

    def _training_record(self, training: TrainingTask, run_task: RunTask) -> Record:
        """The record of a training, done now if it is not."""
        failure = self.folder.failure(training.model)
        if failure:
            raise JobFailure(failure.reason)
        record = self.folder.record(training)
        if record is None:
            self._run_task(training, run_task)
            record = self.folder.record(training)
            assert record is not None
        return record

    def _run_task(self, task: Task, run_task: RunTask) -> None:
        outcome = run_task(task)
        if outcome.next is Next.STOP:
            raise Stopped
        if outcome.next is Next.ABORT:
            raise StorageError(outcome.reason)
        if outcome.next is Next.GIVE_UP:
            if task.model:
                self.folder.fail(task.model, task.stage, outcome.reason, outcome.details)
            raise JobFailure(outcome.reason)
        if not outcome.is_done:
            raise RuntimeError(f"{outcome.reason}\n{outcome.details}")

    def _scores(self, shards: list[Shard]) -> dict[str, Any]:
        try:
            return score_table(_verdicts(self.folder, shards), method=self.plan.jobs[0].label)
        except UserError as error:  # too many verdicts that could not be read
            raise JobFailure(str(error)) from None

    def _cost(self, records: list[Record]) -> dict[str, Any]:
        change = mean_weight_change([TrainingResult.model_validate(record.facts).weight_change for record in records])[
            "all"
        ]
        return {
            "weight_change": change["relative_l2"],
            "challenge": change["challenge"],
            "seconds": sum(record.seconds or 0.0 for record in records),
            "jobs": [model.folder for model in self.plan.jobs],
        }


def base_score(plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """The scores of the unedited base on the images of the last rung, once all of them are judged."""
    return score_table(_verdicts(folder, plan.shards[plan.models[0].id]), method=BASE)


def rung_shards(plan: Plan, rungs: tuple[int, ...], size: int) -> list[list[Shard]]:
    """By rung, what is judged on it of every model and on none before: the images of the seeds that come new."""
    return [
        [shard for model in plan.models for shard in _rung_shards(plan, model, rung, range(before, until), size)]
        for rung, (before, until) in enumerate(zip((0, *rungs), rungs, strict=False))
    ]


def _rung_shards(plan: Plan, model: Model, rung: int, seeds: range, size: int) -> Iterator[Shard]:
    asked = [question for shard in plan.shards[model.id] for question in shard.eval_requests if question.seed in seeds]
    judged_by = [plan.recipe.id, *(calibration.id for calibration in plan.calibrations)]
    for number, start in enumerate(range(0, len(asked), size)):
        part = tuple(asked[start : start + size])
        what = [[q.prompt, q.seed, [[a.concept, a.axis, a.asked_concept] for a in q.asks]] for q in part]
        yield Shard(model, rung * 1000 + number, part, content_id([model.id, model.label, judged_by, what]))


def check_axes(plan: Plan) -> None:
    """Raises UserError where an axis would have no images, and so no trial an ERR."""
    asked = {a.axis for model in plan.jobs for s in plan.shards[model.id] for q in s.eval_requests for a in q.asks}
    missing = [axis for axis in AXES if axis not in asked]
    if missing:
        raise UserError(
            f"search '{plan.name}': nothing is asked on the axis {missing[0]}, and without it there is no ERR; "
            "give a prompt set that has it as evaluation.prompts, and no limit of 0"
        )


def _verdicts(folder: RunFolder, shards: Sequence[Shard]) -> pa.Table:
    return pa.concat_tables([read_table(folder.output(shard, VERDICTS)) for shard in shards])
