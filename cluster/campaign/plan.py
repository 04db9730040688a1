"""A plan: every model, and every shard of images that judges it, with ids made of content.

`expand.py` makes one from a campaign, or from deltas that exist already. No weights are needed for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from efface.cluster.campaign.spec import Evaluation, Resources
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet, load_prompt_set
from efface.errors import UserError
from efface.eval.eval_requests import EvalRequest, eval_requests
from efface.eval.judge_identity import judge_identity
from efface.files import content_id
from efface.models.base import BaseSpec
from efface.models.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from efface.train.job import Job

BASE = "base"
"""The method label of the unedited base, which is judged beside every model."""

NOT_FETCHED = "not fetched yet"
"""The id of a base whose weights are not at hand; a plan can be looked at with it, and not carried out."""

Parts = tuple[tuple[tuple[EvalRequest, ...], str], ...]


@dataclass(frozen=True)
class Model:
    """A model to be judged: the base, or what a job makes of it."""

    label: str
    """The method's name in tables."""
    job: Job | None
    base_id: str
    predecessor: str | None = None
    """The folder of the model that this one continues, in a chain of requests."""
    closed_form: bool = False
    """Made in closed form, for which one process is enough."""

    @cached_property
    def id(self) -> str:
        return self.job.id if self.job else self.base_id[:16]

    @cached_property
    def folder(self) -> str:
        return self.job.slug if self.job else f"base-{self.id}"


@dataclass(frozen=True)
class Shard:
    """A unit of judging: some images of one model, and everything asked of them."""

    model: Model
    index: int
    eval_requests: tuple[EvalRequest, ...]
    id: str


@dataclass(frozen=True)
class CalibrationTask:
    """The trial that a judge stands on images of the base before its verdicts count."""

    judge: str
    """Its name or YAML file."""
    id: str


@dataclass(frozen=True)
class Plan:
    """Everything a run will do."""

    name: str
    base: BaseSpec
    base_id: str
    concept_set: ConceptSet
    recipe: Recipe
    prompt_set: PromptSet
    calibrations: tuple[CalibrationTask, ...]
    """One for each judge, the judge of the headline first."""
    targets: tuple[Concept, ...]
    models: tuple[Model, ...]
    """The base first, then the models of the jobs in the order asked for."""
    shards: dict[str, tuple[Shard, ...]]
    """By model id."""
    resources: Resources

    @cached_property
    def jobs(self) -> tuple[Model, ...]:
        """The models that a job must make."""
        return tuple(model for model in self.models if model.job)

    @property
    def provisional(self) -> bool:
        """Whether the base's weights, and with them all ids, are unknown until they are fetched."""
        return self.base_id == NOT_FETCHED

    def part(self, number: int, parts: int) -> Plan:
        """Part `number` (1, …) of `parts`: whole chains of models with their shards, and a share of the base's."""
        share: dict[str, int] = {}
        chains = itertools.count()
        for model in self.jobs:
            share[model.folder] = share[model.predecessor] if model.predecessor else next(chains) % parts
        mine = [model for model in self.jobs if share[model.folder] == number - 1]
        base = self.models[0]
        shards = {model.id: self.shards[model.id] for model in mine}
        shards[base.id] = self.shards[base.id][number - 1 :: parts]
        return replace(self, models=(base, *mine), shards=shards)

    @cached_property
    def judged(self) -> tuple[Concept, ...]:
        """Every concept that a judge is asked about, in the order of the set."""
        shared = {id(shard.eval_requests): shard.eval_requests for shards in self.shards.values() for shard in shards}
        asked = {
            ask.asked_concept
            for eval_requests in shared.values()
            for question in eval_requests
            for ask in question.asks
        }
        return tuple(concept for concept in self.concept_set.all if concept.name in asked)

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
) -> Plan:
    """The plan that judges `models` and the base. Raises UserError for what is unknown or missing in `evaluation`."""
    prompts = load_prompt_set(evaluation.prompts or _base_default(base, "prompts"), concept_set)
    recipe = load_recipe(evaluation.recipe or _base_default(base, "recipe"))
    judges = evaluation.judges or (_base_default(base, "judge", "judges"),)
    calibrations = tuple(
        CalibrationTask(
            judge, content_id([base_id, recipe.id, judge_identity(judge), prompts.sha256, concept_set.sha256])
        )
        for judge in judges
    )
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
    judged_by = [recipe.id, *(calibration.id for calibration in calibrations)]
    seeds = range(evaluation.images_per_prompt)
    # Models that forget the same concepts are asked the same.
    asked_of: dict[tuple[str, ...] | None, Parts] = {}
    everything = (Model(BASE, None, base_id), *models)
    shards: dict[str, tuple[Shard, ...]] = {}
    for model in everything:
        if model.id in shards:
            raise UserError(
                f"'{name}': method '{model.label}' is the same job as another, {model.folder}; leave one out"
            )
        forgotten = model.job.concepts if model.job else None
        if forgotten not in asked_of:
            asked = tuple(map(concept_set.find, forgotten)) if forgotten else targets
            all_questions = eval_requests(prompts, concept_set, asked, seeds, evaluation.prompts_per_concept)
            kept = _without_forgotten(all_questions, model) if forgotten else all_questions
            asked_of[forgotten] = _parts(kept, evaluation.shard_size, judged_by)
        shards[model.id] = tuple(
            Shard(model, index, part, content_id([model.id, model.label, part_id]))
            for index, (part, part_id) in enumerate(asked_of[forgotten])
        )
    return Plan(name, base, base_id, concept_set, recipe, prompts, calibrations, targets, everything, shards, resources)


def _base_default(base: BaseSpec, key: str, field: str | None = None) -> str:
    """What the base itself says of `key`. Raises UserError where it says nothing."""
    value = getattr(base, key)
    if not value:
        raise UserError(f"base '{base.name}' names no {key}, so evaluation.{field or key} must be given")
    return str(value)


def _without_forgotten(all_questions: tuple[EvalRequest, ...], model: Model) -> tuple[EvalRequest, ...]:
    """The questions, less those that would ask a model to have kept a concept that it was made to forget.

    Raises UserError where that leaves an axis of a concept with nothing to ask, so that it could not be scored.
    """
    forgotten = model.job.concepts if model.job else ()
    kept = []
    for question in all_questions:
        asks = tuple(a for a in question.asks if a.asked_concept not in forgotten or a.concept == a.asked_concept)
        if asks:
            kept.append(EvalRequest(question.prompt, question.seed, asks))
    still_asked = {(a.concept, a.axis) for question in kept for a in question.asks}
    for concept, axis in ((a.concept, a.axis) for question in all_questions for a in question.asks):
        if (concept, axis) not in still_asked:
            raise UserError(
                f"nothing is left to ask the model '{model.label}' on the axis {axis} of '{concept}', as it forgets "
                f"every concept that is asked for there; name fewer targets, or more concepts under the key "
                f"'{'adjacent' if axis == 'adjacent' else 'retained'}' of the concept set"
            )
    return tuple(kept)


def _parts(all_questions: tuple[EvalRequest, ...], size: int, judged_by: list[str]) -> Parts:
    """The questions cut into shards, each with an id of what is asked in it and by whom it is judged."""
    cut = [all_questions[start : start + size] for start in range(0, len(all_questions), size)]
    asked = [[[q.prompt, q.seed, [[a.concept, a.axis, a.asked_concept] for a in q.asks]] for q in part] for part in cut]
    return tuple((part, content_id([judged_by, what])) for part, what in zip(cut, asked, strict=True))
