"""What a model is evaluated on: every image once, with all the concepts that are looked for in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import Axis, PromptSet


@dataclass(frozen=True)
class Ask:
    """One question about an image: for which target, on which axis, which concept is looked for (names)."""

    concept: str
    axis: Axis
    asked_concept: str
    prompt_id: str


@dataclass(frozen=True)
class EvalRequest:
    """One image, made from a prompt and a seed, and every question about it."""

    prompt: str
    seed: int
    asks: tuple[Ask, ...]


def eval_requests(
    prompt_set: PromptSet,
    concept_set: ConceptSet,
    targets: Sequence[Concept],
    seeds: Sequence[int],
    limits: Mapping[Axis, int] | None = None,
) -> tuple[EvalRequest, ...]:
    """Each (prompt text, seed) once: prompts in the order they first come up target by target, the seeds
    inside.

    limits: at most that many prompts per requested concept on an axis. Raises UserError as
    `PromptSet.for_target` does.
    """
    asks: dict[str, list[Ask]] = {}
    for target in dict.fromkeys(targets):
        for prompt in prompt_set.for_target(concept_set, target, limits):
            ask = Ask(prompt.concept, prompt.axis, prompt.asked_concept, prompt.prompt_id)
            asks.setdefault(prompt.text, []).append(ask)
    return tuple(
        EvalRequest(text, seed, tuple(dict.fromkeys(asks[text]))) for text in asks for seed in dict.fromkeys(seeds)
    )
