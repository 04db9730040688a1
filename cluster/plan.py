"""A plan: every model, and every shard of images that judges it, with ids made of content.

`expand.py` makes one from a campaign, or from deltas that exist already. No weights are needed for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from efface.cluster.campaign import Evaluation, Resources
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet, load_prompt_set
from efface.errors import UserError
from efface.eval.judges.identity import judge_identity
from efface.eval.questions import Question, questions
from efface.files import content_id
from efface.models.base import BaseSpec
from efface.models.base import base_id as fingerprint_of
from efface.models.recipe import Recipe, load_recipe
from efface.train.job import Job

BASE = "base"
"""The method label of the unedited base, which is judged beside every model."""


@dataclass(frozen=True)
class Model:
    """A model to be judged: the base, or what a job makes of it."""

    label: str
    """The method's name in tables."""
    job: Job | None
    base_id: str

    @property
    def id(self) -> str:
        return self.job.id if self.job else self.base_id[:16]

    @property
    def folder(self) -> str:
        return self.job.slug if self.job else f"base-{self.id}"


@dataclass(frozen=True)
class Shard:
    """A unit of judging: some images of one model, and everything asked of them."""

    model: Model
    index: int
    questions: tuple[Question, ...]
    id: str


@dataclass(frozen=True)
class Calibration:
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
    calibrations: tuple[Calibration, ...]
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
    def judged(self) -> tuple[Concept, ...]:
        """Every concept that a judge is asked about, in the order of the set."""
        asked = {
            a.asked_concept for shards in self.shards.values() for s in shards for q in s.questions for a in q.asks
        }
        return tuple(concept for concept in self.concept_set.all if concept.name in asked)

    @property
    def images(self) -> int:
        """Images to be made and judged, the base's included."""
        return sum(len(shard.questions) for shards in self.shards.values() for shard in shards)

    @property
    def shard_count(self) -> int:
        return sum(map(len, self.shards.values()))


def make_plan(
    name: str,
    base: BaseSpec,
    concept_set: ConceptSet,
    targets: tuple[Concept, ...],
    models: Sequence[Model],
    evaluation: Evaluation,
    resources: Resources,
) -> Plan:
    """The plan that judges `models` and the base. Raises UserError for what is unknown or missing in `evaluation`."""
    base_id = fingerprint_of(base)
    prompts = load_prompt_set(evaluation.prompts or _own(base, "prompts"), concept_set)
    recipe = load_recipe(evaluation.recipe or _own(base, "recipe"))
    judges = evaluation.judges or (_own(base, "judge", "judges"),)
    trials = tuple(
        Calibration(judge, content_id([base_id, recipe.id, judge_identity(judge), prompts.sha256, concept_set.sha256]))
        for judge in judges
    )
    doubled = next((trial.judge for i, trial in enumerate(trials) if trial.id in {t.id for t in trials[:i]}), None)
    if doubled:
        raise UserError(f"evaluation.judges names '{doubled}' twice, should name each judge once")
    judged_by = [recipe.id, *(trial.id for trial in trials)]
    seeds = range(evaluation.images_per_prompt)
    everything = (Model(BASE, None, base_id), *models)
    shards: dict[str, tuple[Shard, ...]] = {}
    for model in everything:
        if model.id in shards:
            raise UserError(
                f"'{name}': method '{model.label}' is the same job as another, {model.folder}; leave one out"
            )
        asked = tuple(map(concept_set.find, model.job.concepts)) if model.job else targets
        wanted = questions(prompts, concept_set, asked, seeds, evaluation.prompts_per_concept)
        if model.job:
            wanted = _kept_apart(wanted, model)
        shards[model.id] = tuple(_shards(model, wanted, evaluation.shard_size, judged_by))
    return Plan(name, base, base_id, concept_set, recipe, prompts, trials, targets, everything, shards, resources)


def _own(base: BaseSpec, key: str, field: str | None = None) -> str:
    """What the base itself says of `key`. Raises UserError where it says nothing."""
    value = getattr(base, key)
    if not value:
        raise UserError(f"base '{base.name}' names no {key}, so evaluation.{field or key} must be given")
    return str(value)


def _kept_apart(wanted: tuple[Question, ...], model: Model) -> tuple[Question, ...]:
    """The questions, less those that would ask a model to have kept a concept that it was made to forget.

    Raises UserError where that leaves an axis of a concept with nothing to ask, so that it could not be scored.
    """
    forgotten = model.job.concepts if model.job else ()
    kept = []
    for question in wanted:
        asks = tuple(a for a in question.asks if a.asked_concept not in forgotten or a.concept == a.asked_concept)
        if asks:
            kept.append(Question(question.prompt, question.seed, asks))
    still_asked = {(a.concept, a.axis) for question in kept for a in question.asks}
    for concept, axis in ((a.concept, a.axis) for question in wanted for a in question.asks):
        if (concept, axis) not in still_asked:
            raise UserError(
                f"nothing is left to ask the model '{model.label}' on the axis {axis} of '{concept}', as it forgets "
                f"every concept that is asked for there; name fewer targets, or more concepts under the key "
                f"'{'adjacent' if axis == 'adjacent' else 'retained'}' of the concept set"
            )
    return tuple(kept)


def _shards(model: Model, wanted: tuple[Question, ...], size: int, judged_by: list[str]) -> Iterator[Shard]:
    for index, start in enumerate(range(0, len(wanted), size)):
        part = wanted[start : start + size]
        asked = [[q.prompt, q.seed, [[a.concept, a.axis, a.asked_concept] for a in q.asks]] for q in part]
        yield Shard(model, index, part, content_id([model.id, model.label, judged_by, asked]))
