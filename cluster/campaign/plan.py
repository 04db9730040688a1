"""A plan: every model of a campaign, and every task about it, with ids made of content.

`planner.py` makes one from a campaign, or from deltas that exist already. No weights are needed for it.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from efface.cluster.campaign.attack_tasks import plan_attacks
from efface.cluster.campaign.prompt_searches import PromptSearches, plan_prompt_searches
from efface.cluster.campaign.sharding import Judging, Look, cut_shards, retaining
from efface.cluster.campaign.spec import AttackChoice, Evaluation, Resources
from efface.cluster.tasks.calibration import CalibrationPart, CalibrationTask, calibration_tasks
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.metric import MetricTask
from efface.cluster.tasks.model import BASE, NOT_FETCHED, Model
from efface.cluster.tasks.prompt_search import PromptCheck, PromptSearch
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import AXES, KEPT_AXES, Axis, PromptSet, load_prompt_set
from efface.errors import UserError
from efface.eval.attacking.found_prompts import read_slot
from efface.eval.calibration.calibration_requests import calibration_requests
from efface.eval.calibration.threshold_fit import MIN_IMAGES
from efface.eval.judging.eval_requests import EvalRequest, eval_requests
from efface.eval.judging.judge_identity import judge_identity
from efface.eval.judging.judge_spec import judge_name, read_judge
from efface.eval.metric import METRICS
from efface.models.base import BaseSpec
from efface.models.recipe import Recipe, load_recipe
from efface.models.text.tokenizer import check_texts

Kind = TypeVar("Kind", bound=Task)


@dataclass(frozen=True)
class Plan:
    """Everything a run will do."""

    name: str
    base: BaseSpec
    base_id: str
    concept_set: ConceptSet
    recipe: Recipe
    prompt_set: PromptSet
    targets: tuple[Concept, ...]
    models: tuple[Model, ...]
    """The base first, then the models of the jobs in the order of the campaign."""
    tasks: tuple[Task, ...]
    """In an order in which whatever a task requires is provided by an earlier one, or is the base."""
    resources: Resources
    judged: tuple[Concept, ...] = ()
    """Every concept that a judge may be asked about, in the order of the set."""
    warnings: tuple[str, ...] = ()
    """What should be known before the results are believed, in a sentence each."""

    @cached_property
    def jobs(self) -> tuple[Model, ...]:
        """The models that a job must make."""
        return tuple(model for model in self.models if model.job)

    @cached_property
    def jobs_by_config(self) -> Counter[tuple[str, str]]:
        """How many jobs there are of each method and config (as JSON with sorted keys)."""
        jobs = (model.job for model in self.jobs if model.job)
        return Counter((job.method, json.dumps(job.config, sort_keys=True)) for job in jobs)

    @cached_property
    def calibrations(self) -> tuple[CalibrationTask, ...]:
        """One for each judge, the judge of the headline first."""
        return self.of_kind(CalibrationTask)

    @cached_property
    def prompt_searches(self) -> tuple[PromptSearch, ...]:
        """One for each target whose adversarial prompts have to be found."""
        return self.of_kind(PromptSearch)

    @cached_property
    def prompt_checks(self) -> tuple[PromptCheck, ...]:
        """One for each of `prompt_searches`."""
        return self.of_kind(PromptCheck)

    @cached_property
    def trainings(self) -> tuple[TrainingTask, ...]:
        """One for each of `jobs`."""
        return self.of_kind(TrainingTask)

    @cached_property
    def shards(self) -> dict[str, tuple[Shard, ...]]:
        """By model id, of every model."""
        found: dict[str, list[Shard]] = {model.id: [] for model in self.models}
        for shard in self.of_kind(Shard):
            found[shard.model.id].append(shard)
        return {name: tuple(shards) for name, shards in found.items()}

    def of_kind(self, kind: type[Kind]) -> tuple[Kind, ...]:
        """The tasks of one kind, in their order."""
        return tuple(task for task in self.tasks if isinstance(task, kind))

    @property
    def products(self) -> set[str]:
        """What is there without any task: the base."""
        return {model.folder for model in self.models if not model.job}

    @property
    def provisional(self) -> bool:
        """Whether the base's weights, and with them all ids, are unknown until they are fetched."""
        return self.base_id == NOT_FETCHED

    def part(self, number: int, parts: int) -> Plan:
        """Part `number` (1, …) of `parts`: whole chains of models with their tasks, and a share of the base's.

        Each part makes all calibrations and finds all prompts, beginning elsewhere than the next; what one has done is
        done for all. Tasks that need what other parts make, as trying found prompts on other models does, are left out
        of all parts.
        """
        share: dict[str, int] = {}
        chains = itertools.count()
        for model in self.jobs:
            share[model.folder] = share[model.predecessor] if model.predecessor else next(chains) % parts
        mine = {model.folder for model in self.jobs if share[model.folder] == number - 1}
        base_tasks = itertools.count()

        def is_mine(task: Task) -> bool:
            if task.model and task.model.job:
                return task.model.folder in mine
            return task.model is None or next(base_tasks) % parts == number - 1

        models = tuple(model for model in self.models if not model.job or model.folder in mine)
        tasks = _provided([task for task in self.tasks if is_mine(task)], self.products)
        return replace(self, models=models, tasks=_rotated(tasks, number, parts))

    def only(self, models: Sequence[Model]) -> Plan:
        """The part about some of its models; and what is about none."""
        kept = {model.folder for model in models}
        tasks = tuple(task for task in self.tasks if task.model is None or task.model.folder in kept)
        return replace(self, models=tuple(models), tasks=tasks)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """That are asked."""
        shared = {id(shard.eval_requests): shard.eval_requests for shard in self.of_kind(Shard)}
        asked = {ask.axis for requests in shared.values() for request in requests for ask in request.asks}
        return tuple(axis for axis in AXES if axis in asked)

    @property
    def images(self) -> int:
        """Images to be made and judged, the base's included."""
        return sum(len(shard.eval_requests) for shards in self.shards.values() for shard in shards)

    @property
    def shard_count(self) -> int:
        return sum(map(len, self.shards.values()))


def make_plan(
    name: str,
    base: BaseSpec,
    base_id: str,
    concept_set: ConceptSet,
    targets: tuple[Concept, ...],
    models: Sequence[Model],
    evaluation: Evaluation,
    resources: Resources,
    attacks: Sequence[AttackChoice] = (),
    looks: Sequence[Look] = (),
) -> Plan:
    """The plan that judges `models` and the base; looks: as in `cut_shards`.

    Raises UserError for what is unknown or missing in `evaluation`.
    """
    prompts = load_prompt_set(evaluation.prompts or _base_default(base, "prompts"), concept_set)
    recipe = load_recipe(evaluation.recipe or _base_default(base, "recipe"))
    judges = evaluation.judges or (concept_set.judge or _base_default(base, "judge", "judges"),)
    retained = retaining(concept_set, targets, models)
    judged = _judged(prompts, retained, targets, evaluation)
    calibrating = [
        calibration_tasks(
            judge,
            calibration_requests(prompts, concept_set, judged, spec.config.calibration_images, spec.config.fitted),
            [base_id, recipe.id, judge_identity(judge), prompts.sha256, concept_set.sha256],
        )
        for judge in judges
        for spec in [read_judge(judge)]
    ]
    calibrations = tuple(calibration for _, calibration in calibrating)
    duplicate = next(
        (
            calibration.judge
            for i, calibration in enumerate(calibrations)
            if calibration.id in {t.id for t in calibrations[:i]}
        ),
        None,
    )
    if duplicate:
        raise UserError(f"evaluation.judges names '{duplicate}' twice, should name each judge once")
    called = Counter(map(judge_name, judges))
    if called.total() > len(called):
        name_twice = called.most_common(1)[0][0]
        raise UserError(f"evaluation.judges: two are called '{name_twice}' in tables, give one file another name")
    everything = (Model(BASE, None, base_id), *models)
    seen: set[str] = set()
    for model in everything:
        if model.id in seen:
            raise UserError(
                f"'{name}': method '{model.label}' is the same job as another, {model.folder}; leave one out"
            )
        seen.add(model.id)
    judged_by = (recipe.id, calibrations[0].id)
    to_find = plan_prompt_searches(base, prompts, concept_set, targets, evaluation, (base_id, *judged_by))
    first = tuple(check.id for check in to_find.checks)
    judging = Judging(to_find.prompts, recipe.id, tuple(calibration.id for calibration in calibrations))
    tasks = (
        *(part for parts, _ in calibrating for part in parts),
        *calibrations,
        *to_find.tasks,
        *(TrainingTask(model, first) for model in models),
        *cut_shards(everything, targets, retained, judging, evaluation, looks),
        *(_metric(model, name, judged_by) for model in models if model.job for name in evaluation.metrics),
        *plan_attacks(attacks, everything, concept_set, prompts, judged_by),
    )
    shards = [task for task in tasks if isinstance(task, Shard)]
    parts = {id(shard.eval_requests): shard.eval_requests for shard in shards}
    prompted = {request.prompt for part in parts.values() for request in part}
    texts = {text for text in prompted if read_slot(text) is None}
    warnings = (
        *_to_be_found(to_find, prompts, targets),
        *check_texts(base, concept_set, prompts, texts),
        *_nothing_held_out(concept_set, shards),
        *_shared_rollouts(models),
        *_few_calibration_images(judges),
    )
    return Plan(
        name, base, base_id, concept_set, recipe, prompts, targets, everything, tasks, resources, judged, warnings
    )


def _metric(model: Model, name: str, judged_by: tuple[str, str]) -> MetricTask:
    """Raises UserError for an unknown metric."""
    metric = METRICS.get(name)
    if isinstance(metric, type):
        return MetricTask(model, name, (*judged_by, str(metric.version)))
    return MetricTask(model, name)


def _judged(
    prompts: PromptSet, concept_set: ConceptSet, targets: Sequence[Concept], evaluation: Evaluation
) -> tuple[Concept, ...]:
    """Every concept that a judge may be asked about, in the order of the set: the targets, and what has to stay.

    The adversarial axis asks for the targets alone, by prompts that may still have to be found.
    """
    names = {target.name for target in targets}
    limits: dict[Axis, int] = {**evaluation.prompts_per_concept, "adversarial": 0}
    requests = eval_requests(prompts, concept_set, tuple(map(concept_set.find, names)), (0,), limits)
    asked = names | {ask.asked_concept for request in requests for ask in request.asks}
    return tuple(concept for concept in concept_set.all if concept.name in asked)


def _nothing_held_out(concept_set: ConceptSet, shards: Sequence[Shard]) -> Iterator[str]:
    """A sentence for each axis on which some model can only be scored on concepts that it may have seen."""
    groups: dict[tuple[str, ...], dict[int, Sequence[EvalRequest]]] = {}
    for shard in shards:
        forgotten = shard.model.job.concepts if shard.model.job else ()
        groups.setdefault(forgotten, {})[id(shard.eval_requests)] = shard.eval_requests
    lacking: dict[Axis, dict[str, None]] = {axis: {} for axis in KEPT_AXES}
    for parts in groups.values():
        held_out: dict[tuple[Axis, str], bool] = {}
        for ask in (ask for part in parts.values() for request in part for ask in request.asks):
            if ask.axis in KEPT_AXES and not held_out.get((ask.axis, ask.concept)):
                held_out[ask.axis, ask.concept] = concept_set.find(ask.asked_concept).held_out
        for (axis, concept), found in held_out.items():
            if not found:
                lacking[axis][concept] = None
    for axis, concepts in lacking.items():
        if concepts:
            yield (
                f"concept set {concept_set.name}: nothing is held out on the axis {axis} of {', '.join(concepts)}, so "
                "it is scored on concepts that methods may hold still by name; mark some with `held_out: true`"
            )


def _shared_rollouts(models: Sequence[Model]) -> Iterator[str]:
    """A sentence for each method whose steps share trajectories, as no paper has it."""
    config = {model.label: model.job.config for model in models if model.job}
    for label, steps in ((label, int(own.get("steps_per_rollout", 1))) for label, own in config.items()):
        if steps > 1:
            yield (
                f"{label}: {steps} optimiser steps learn from each roll-out (steps_per_rollout: {steps}), where the "
                "paper rolls out anew for every step"
            )


def _provided(tasks: Sequence[Task], products: set[str]) -> list[Task]:
    """The tasks, in a plan's order, of which everything is there that they require: by `products` or by each other."""
    there, found = set(products), []
    for task in tasks:
        if there.issuperset(task.requires):
            found.append(task)
            there.update([task.provides] if task.provides else [])
    return found


def _rotated(tasks: Sequence[Task], number: int, parts: int) -> tuple[Task, ...]:
    """The tasks, with those that every part does for all rotated among their kind: each part begins elsewhere."""
    order = list(tasks)
    for kind in (CalibrationPart, PromptSearch, PromptCheck):
        positions = [index for index, task in enumerate(tasks) if isinstance(task, kind)]
        turn = (number - 1) * len(positions) // parts
        for i, index in enumerate(positions):
            order[index] = tasks[positions[(i + turn) % len(positions)]]
    return tuple(order)


def _to_be_found(to_find: PromptSearches, prompts: PromptSet, targets: Sequence[Concept]) -> tuple[str, ...]:
    """What is searched, and what becomes of a concept for which nothing is found."""
    if not to_find.searches:
        return ()
    return (
        f"prompt set '{prompts.name}' has no adversarial prompts for {len(to_find.searches)} of {len(targets)} "
        "targets: they are searched first, before anything is trained; a concept for which none is found that the base "
        "follows is named then, and asked by the strongest, so that its adversarial score says little",
    )


def _base_default(base: BaseSpec, key: str, field: str | None = None) -> str:
    """What the base itself says of `key`. Raises UserError where it says nothing."""
    value = getattr(base, key)
    if not value:
        raise UserError(f"base '{base.name}' names no {key}, so evaluation.{field or key} must be given")
    return str(value)


def _few_calibration_images(judges: Sequence[str]) -> Iterator[str]:
    """A sentence for each judge whose thresholds would be fitted on too few images of a concept."""
    for judge in judges:
        config = read_judge(judge).config
        if config.fitted and config.calibration_images < MIN_IMAGES:
            yield (
                f"judge '{judge_name(judge)}': calibration_images is {config.calibration_images}, below {MIN_IMAGES}, "
                "so that all concepts share one threshold, and its accuracy on each is hardly known; 20 are the default"
            )
