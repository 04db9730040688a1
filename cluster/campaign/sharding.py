"""What is asked of the images of each model, cut into shards with ids of content."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from efface.cluster.campaign.spec import Evaluation
from efface.cluster.tasks.judging import Shard, shard_requires
from efface.cluster.tasks.model import Model
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import UserError
from efface.eval.eval_requests import EvalRequest, eval_requests
from efface.files import content_id

Parts = tuple[tuple[tuple[EvalRequest, ...], str], ...]


@dataclass(frozen=True)
class Judging:
    """What all shards of a plan share."""

    prompts: PromptSet
    recipe_id: str
    calibrations: tuple[str, ...]
    """Ids, one for each judge."""


def cut_shards(
    models: Sequence[Model],
    targets: tuple[Concept, ...],
    concept_set: ConceptSet,
    judging: Judging,
    evaluation: Evaluation,
) -> Iterator[Shard]:
    """The shards of each model in turn. Models that forget the same concepts are asked the same.

    Raises UserError where a model has nothing left to be asked on an axis.
    """
    seeds = range(evaluation.images_per_prompt)
    judged_by = [judging.recipe_id, *judging.calibrations]
    asked_of: dict[tuple[str, ...] | None, Parts] = {}
    for model in models:
        forgotten = model.job.concepts if model.job else None
        if forgotten not in asked_of:
            asked = tuple(map(concept_set.find, forgotten)) if forgotten else targets
            all_questions = eval_requests(judging.prompts, concept_set, asked, seeds, evaluation.prompts_per_concept)
            kept = _without_forgotten(all_questions, model) if forgotten else all_questions
            asked_of[forgotten] = _parts(kept, evaluation.shard_size, judged_by)
        requires = shard_requires(model, judging.calibrations)
        for index, (part, part_id) in enumerate(asked_of[forgotten]):
            yield Shard(model, index, part, content_id([model.id, model.label, part_id]), requires)


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
