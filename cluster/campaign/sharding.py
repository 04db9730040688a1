"""What is asked of the images of each model, cut into shards with ids of content."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from efface.cluster.campaign.spec import Evaluation
from efface.cluster.tasks.judging import Shard, shard_requires
from efface.cluster.tasks.model import Model
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import Axis, PromptSet
from efface.errors import UserError
from efface.eval.attacking.found_prompts import checks_of
from efface.eval.judging.eval_requests import EvalRequest, eval_requests
from efface.files import content_id

Parts = tuple[tuple[tuple[EvalRequest, ...], str], ...]


@dataclass(frozen=True)
class Look:
    """Images of every prompt that are drawn together, before one looks at what they say."""

    seeds: range
    settled: frozenset[Axis] = frozenset()
    """Axes that have been drawn enough, and are asked no more."""


@dataclass(frozen=True)
class Judging:
    """What all shards of a plan share."""

    prompts: PromptSet
    """With slots where prompts have to be found."""
    recipe_id: str
    calibrations: tuple[str, ...]
    """Ids, one for each judge."""


def cut_shards(
    models: Sequence[Model],
    targets: tuple[Concept, ...],
    concept_set: ConceptSet,
    judging: Judging,
    evaluation: Evaluation,
    looks: Sequence[Look] = (),
) -> Iterator[Shard]:
    """The shards of each model in turn. Models that forget the same concepts are asked the same.

    looks: what is drawn of the images, in shards that further looks leave as they are; none: all at once.
    Raises UserError where a model has nothing left to be asked on an axis.
    """
    looks = looks or (Look(range(evaluation.images_per_prompt)),)
    targets = tuple(concept_set.find(target.name) for target in targets)
    judged_by = [judging.recipe_id, *judging.calibrations]
    shared: dict[tuple[str, ...] | None, tuple[Parts, tuple[str, ...]]] = {}
    for model in models:
        forgotten = model.job.concepts if model.job else None
        if forgotten not in shared:
            requested = tuple(map(concept_set.find, forgotten)) if forgotten else targets
            parts: Parts = ()
            checks: tuple[str, ...] = ()
            for look in looks:
                limits = evaluation.prompts_per_concept | dict.fromkeys(look.settled, 0)
                all_questions = eval_requests(judging.prompts, concept_set, requested, look.seeds, limits)
                kept = _without_forgotten(all_questions, model, targets) if forgotten else all_questions
                parts += _parts(kept, evaluation.shard_size, judged_by)
                checks += tuple(check for check in checks_of(kept) if check not in checks)
            shared[forgotten] = parts, checks
        parts, checks = shared[forgotten]
        requires = shard_requires(model, judging.calibrations, checks)
        for index, (part, part_id) in enumerate(parts):
            yield Shard(model, index, part, content_id([model.id, model.label, part_id]), requires)


def retaining(concept_set: ConceptSet, targets: Sequence[Concept], models: Sequence[Model]) -> ConceptSet:
    """The set, with neighbours to be retained where a model forgets whatever else would be.

    Of a target all of whose retained concepts are targets too, they become the neighbours that are neither near it nor
    a target. Where every model forgets a concept alone, the set is as it was.
    """
    names = {target.name for target in targets}
    if all(model.job is None or model.job.strategy == "single" for model in models):
        return concept_set
    changed = {}
    for concept in concept_set.all:
        if concept.name in names and all(other.name in names for other in concept_set.retained_for(concept)):
            near = {concept.name, *(other.name for other in concept_set.adjacent_to(concept))}
            others = tuple(other.name for other in concept_set.neighbours if other.name not in near | names)
            if others:
                changed[concept.name] = concept.model_copy(update={"retained": others})
    fields = {key: getattr(concept_set, key) for key in ConceptSet.model_fields}
    lists = {
        key: tuple(changed.get(concept.name, concept) for concept in value)
        for key, value in fields.items()
        if isinstance(value, tuple)
    }
    return ConceptSet(**{**fields, **lists})


def _without_forgotten(
    all_questions: tuple[EvalRequest, ...], model: Model, targets: Sequence[Concept]
) -> tuple[EvalRequest, ...]:
    """The questions, less those that would ask a model to have kept a concept that it was made to forget.

    In a chain of requests nothing counts as retained that a later request erases: the axis asks after each request for
    the same. Raises UserError where an axis of a concept is left with nothing to ask, so that it could not be scored.
    """
    forgotten = set(model.job.concepts if model.job else ())
    chain = model.job is not None and model.job.strategy == "continual"
    erased: dict[str, set[str]] = {"retain": forgotten | {t.name for t in targets} if chain else forgotten}
    kept = []
    for question in all_questions:
        asks = tuple(
            a
            for a in question.asks
            if a.concept == a.asked_concept or a.asked_concept not in erased.get(a.axis, forgotten)
        )
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
