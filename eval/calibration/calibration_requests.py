"""The images by which a judge is calibrated: made by the unedited base, and asked for what they show and do not show.

Every image is made for one concept by one of its direct prompts, and judged for that concept and for some others; so
each image with one concept is shared by the others as one without. Thresholds are fitted on some images, and the judge
is measured on images of other seeds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet, prompt_of

FIRST_SEED = 10_000
"""Image seeds of calibrations lie apart from those of campaigns."""
OTHERS = 10
"""Concepts that an image is judged for beside its own, each in turn: ten images without a concept for one with it."""


@dataclass(frozen=True)
class CalibrationRequest:
    """One image. `asked` begins with the concept that it is made for; `fitting`: thresholds are fitted on it."""

    prompt: str
    seed: int
    asked: tuple[str, ...]
    fitting: bool


def calibration_requests(
    prompt_set: PromptSet, concept_set: ConceptSet, concepts: Sequence[Concept], images: int, fitted: bool
) -> tuple[CalibrationRequest, ...]:
    """`images` of every concept to measure a judge on; before them, where it is `fitted`, as many to fit it on.

    The prompts of a concept take turns. An image is not judged for a concept that its prompt names too (a sketch of a
    cat for the cat): that may rightly be there.
    """
    return tuple(
        CalibrationRequest(
            prompt, FIRST_SEED + number, (concept.name, *_others(number, position, concepts, prompt)), fitting
        )
        for fitting, numbers in ((True, range(images if fitted else 0)), (False, _measured(images, fitted)))
        for number in numbers
        for position, concept in enumerate(concepts)
        for prompt in [_turn(own_prompts(prompt_set, concept_set, concept), number)]
    )


def own_prompts(prompt_set: PromptSet, concept_set: ConceptSet, concept: Concept) -> list[str]:
    """The direct prompts of a concept; a neighbour without a row of its own has the one that names it."""
    own = [prompt.text for prompt in prompt_set.axis("forget", concept_set, concept)]
    return own or [prompt_of(concept.phrase)]


def _measured(images: int, fitted: bool) -> range:
    return range(images, 2 * images) if fitted else range(images)


def _turn(prompts: Sequence[str], number: int) -> str:
    return prompts[number % len(prompts)]


def _others(number: int, position: int, concepts: Sequence[Concept], prompt: str) -> Iterator[str]:
    """Of the concepts after the one at `position`, in a circle, the next `OTHERS` of image `number`."""
    others = len(concepts) - 1
    for step in range(min(OTHERS, others)):
        other = concepts[(position + 1 + (number * OTHERS + step) % others) % len(concepts)]
        if not other.is_named_in(prompt):
            yield other.name
