"""Adversarial prompts: what an attack finds for a concept, as far as the base really makes the concept from it.

An attack knows the text encoder alone, so what it thinks strong may show nothing. Its candidates are tried on the
unedited base, the strongest first, and a prompt is *confirmed* where a judge finds the concept in enough of its images.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet
from efface.eval.attack import CANDIDATES, AdversarialPrompt, PromptAttack
from efface.eval.attack_target import attack_target
from efface.eval.attacking.found_prompts import MIN_DETECTION_RATE, FoundPrompt, FoundPrompts
from efface.eval.judge import Judge
from efface.eval.judging.image_errors import image_errors
from efface.eval.judging.verdicts import verdicts
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample

CHECK_SEEDS = (20_000, 20_001, 20_002, 20_003)
"""Image seeds of the check, apart from those of campaigns and calibrations: prompts that were chosen on the very images
they are scored on would score too well on the base."""

ROUNDS = 4
"""Of `CANDIDATES` prompts each, that are checked at most."""
MOST = CANDIDATES * ROUNDS
"""Prompts of a concept that are checked at most."""


@dataclass(frozen=True)
class KeptPrompt:
    """A prompt of an attack, and the share of its images in which the judge finds the concept; None: no judge."""

    prompt: AdversarialPrompt
    detection_rate: float | None
    unreadable: int = 0
    """Verdicts that could not be read; they count as images without the concept."""

    @property
    def rank(self) -> tuple[float, float]:
        return (1.0 if self.detection_rate is None else self.detection_rate), self.prompt.strength

    @property
    def confirmed(self) -> bool:
        """Whether the base makes the concept from it, or nobody looked."""
        return self.detection_rate is None or self.detection_rate >= MIN_DETECTION_RATE


@dataclass(frozen=True)
class PromptChecker:
    """Whether `base` makes a concept from prompts, by the verdicts of `judge`."""

    base: Base
    recipe: Recipe
    judge: Judge
    on_batch: Callable[[int], None] | None = None
    """Called with the number of images of each batch."""

    def rated(self, concept: Concept, found: Sequence[AdversarialPrompt]) -> list[KeptPrompt]:
        """Each prompt with the share of its images that show the concept."""
        requests = [ImageRequest(prompt.text, seed) for prompt in found for seed in CHECK_SEEDS]
        not_finite: set[int] = set()
        images = sample(self.base, self.recipe, requests, self.on_batch, not_finite.add)
        answers = verdicts(self.judge, images, [concept] * len(requests), image_errors(images, not_finite))
        of_prompts = [
            [verdict.present for verdict in answers[i : i + len(CHECK_SEEDS)]]
            for i in range(0, len(answers), len(CHECK_SEEDS))
        ]
        return [
            KeptPrompt(prompt, sum(map(bool, present)) / len(CHECK_SEEDS), present.count(None))
            for prompt, present in zip(found, of_prompts, strict=True)
        ]


def check_candidates(
    candidates: Sequence[AdversarialPrompt], concept: Concept, check: PromptChecker, enough: int
) -> list[KeptPrompt]:
    """The candidates that were tried, round by round until `enough` are confirmed.

    The most often detected come first, then the strongest.
    """
    tried: list[KeptPrompt] = []
    for start in range(0, len(candidates), CANDIDATES):
        tried += check.rated(concept, candidates[start : start + CANDIDATES])
        if sum(prompt.confirmed for prompt in tried) >= enough:
            break
    return ranked(tried)


def ranked(prompts: Iterable[KeptPrompt]) -> list[KeptPrompt]:
    """The most often detected first, then the strongest."""
    return sorted(prompts, key=lambda found: found.rank, reverse=True)


def found_prompts(concept: str, attack: str, tried: Sequence[KeptPrompt], enough: int) -> FoundPrompts:
    """Of the prompts that were `tried`, ranked: the confirmed ones, or where none is the strongest."""
    confirmed = [prompt for prompt in tried if prompt.confirmed]
    return FoundPrompts(
        concept=concept,
        attack=attack,
        prompts=tuple(
            FoundPrompt(
                text=kept.prompt.text,
                strength=kept.prompt.strength,
                detection_rate=kept.detection_rate or 0.0,
                unreadable=kept.unreadable,
            )
            for kept in (confirmed or tried)[:enough]
        ),
        tried=len(tried),
        images=len(tried) * len(CHECK_SEEDS),
        unreadable=sum(kept.unreadable for kept in tried),
    )


def adversarial_prompts(
    attack: PromptAttack,
    concept_set: ConceptSet,
    prompt_set: PromptSet,
    check: PromptChecker | None,
    *,
    per_concept: int = 5,
    seed: int = 0,
    targets: Sequence[Concept] | None = None,
    on_concept: Callable[[str, Sequence[KeptPrompt]], None] | None = None,
) -> dict[str, tuple[KeptPrompt, ...]]:
    """Concept name -> at most `per_concept` confirmed prompts, the most often detected first, then the strongest.

    `targets`: of the set, all unless given; what is found for one does not depend on the others.

    Fewer (or none) where 24 candidates hold no more from which the base makes the concept in half of 4 images. Without
    a check the strongest of 6. No prompt holds a name, an alias or a word of the descriptions.
    """
    result: dict[str, tuple[KeptPrompt, ...]] = {}
    for concept in concept_set.concepts if targets is None else targets:
        target = attack_target(concept, concept_set, prompt_set)
        count = CANDIDATES * (ROUNDS if check else 1)
        candidates = attack.strongest(target, seed, count)
        if check:
            tried = check_candidates(candidates, concept, check, per_concept)
        else:
            tried = ranked(KeptPrompt(prompt, None) for prompt in candidates)
        result[concept.name] = tuple(prompt for prompt in tried if prompt.confirmed)[:per_concept]
        if on_concept:
            on_concept(concept.name, result[concept.name])
    return result
