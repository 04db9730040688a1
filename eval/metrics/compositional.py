"""Two concepts in one prompt, of which one was erased: is the other still there?

A model may keep every other concept where that is asked for alone, and lose it beside what it forgot (Erasure or
Erosion?, arXiv 2604.04575); retain accuracy does not see that. Each forgotten concept is asked for together with a few
that should stay, held-out ones first. The base's rate on the same prompts and seeds stands beside, since a base may
not manage two concepts at once either.
"""

from collections.abc import Mapping, Sequence

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.eval.judging.image_errors import image_errors
from efface.eval.judging.verdicts import verdicts
from efface.eval.metric import METRICS, JudgedContext, JudgedMetric
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.sampling.sampler import ImageRequest, sample

PARTNERS, SEEDS = 4, (40_000, 40_001)
"""Others that each forgotten concept is asked for with, and images of each pair, apart from those of campaigns."""


def together(concept: Concept, other: Concept) -> str:
    """A prompt for both: a thing in a style, or two things."""
    if (concept.kind == "style") == (other.kind == "style"):
        return f"{concept.phrase} and {other.phrase}"
    thing, style = (other, concept) if concept.kind == "style" else (concept, other)
    return f"{thing.phrase}, {style.phrase}"


def partners(concept: Concept, context: JudgedContext) -> list[Concept]:
    """What it is asked for with: of what must stay, things for a style and styles for a thing, then others.

    In each, those held out from methods come first.
    """
    known = {judged.name for judged in context.judged}
    gone = {forgotten.name for forgotten in context.forgotten}
    stay = [other for other in context.concept_set.retained_for(concept) if other.name in known - gone]
    is_style = concept.kind == "style"
    stay.sort(key=lambda other: ((other.kind == "style") == is_style, not other.held_out))
    return stay[:PARTNERS]


@METRICS.register("compositional")
class Compositional(JudgedMetric):
    """Shares of images of two concepts: the other one still there, what was erased gone; and the base's beside."""

    def __call__(self, base: Base, delta: Delta, context: JudgedContext) -> Mapping[str, float]:
        pairs = [(concept, other) for concept in context.forgotten for other in partners(concept, context)]
        if not pairs:
            raise UserError("metric 'compositional': nothing that should stay is judged, should be some concept")
        requests = [ImageRequest(together(*pair), seed) for pair in pairs for seed in SEEDS]
        asked = [pair for pair in pairs for _ in SEEDS]
        base.swap(None)
        before = self._present(base, requests, asked, context)
        base.swap(delta)
        try:
            after = self._present(base, requests, asked, context)
        finally:
            base.swap(None)
        of_both = {"": after, "base_": before}
        numbers = {
            f"{whose}{name}": _share(found[part])
            for whose, found in of_both.items()
            for part, name in enumerate(("erased_present", "other_present"))
        }
        unreadable = sum(answers.count(None) for found in of_both.values() for answers in found)
        return {**numbers, "images": float(len(requests)), "unreadable": float(unreadable)}

    @staticmethod
    def _present(
        base: Base, requests: Sequence[ImageRequest], asked: Sequence[tuple[Concept, Concept]], context: JudgedContext
    ) -> tuple[list[bool | None], list[bool | None]]:
        """Of each image, whether it shows the erased concept, and the other one."""
        not_finite: set[int] = set()
        images = sample(base, context.recipe, requests, on_not_finite=not_finite.add)
        errors = image_errors(images, not_finite)
        erased, other = (
            [verdict.present for verdict in verdicts(context.judge, images, [pair[part] for pair in asked], errors)]
            for part in (0, 1)
        )
        return erased, other


def _share(present: Sequence[bool | None]) -> float:
    """Of the images with a verdict; NaN where none has one."""
    read = [answer for answer in present if answer is not None]
    return sum(read) / len(read) if read else float("nan")
