"""Adversarial prompts for a whole concept set, found once against the base and then asked of every edited
model.

They are a static set: found without knowing any edited model, they tell whether a concept comes back by
other words. A prompt counts only if the base really draws the concept from it, as the judge sees it.
"""

from collections.abc import Callable, Mapping, Sequence

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet, prompt_of
from efface.eval.attacks.token_search import SearchConfig, SearchObjective, Vocabulary, restart_seed, search
from efface.eval.banned_words import banned_for
from efface.eval.image_errors import image_errors, verdicts
from efface.eval.judge import Judge
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampler import ImageRequest, sample

CHECK_SEEDS = (0, 1, 2, 3)
MIN_DETECTION_RATE = 0.5  # share of the check's images that must show the concept
RESTARTS = 6
ROUNDS = 4


def adversarial_prompts(
    base: Base,
    concept_set: ConceptSet,
    prompt_set: PromptSet,
    judge: Judge | None,
    recipe: Recipe,
    per_concept: int = 5,
    seed: int = 0,
    config: SearchConfig | None = None,
    targets: Sequence[Concept] | None = None,
    on_concept: Callable[[str, Sequence[str]], None] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Concept name -> at most `per_concept` prompts, the most often drawn first, then the most similar.

    `targets`: of the set, all unless given; what is found for one does not depend on the others.

    Fewer (or none) where 4 rounds of 6 restarts find no more that the base draws in half of 4 images.
    Without a judge the most similar of one round, unchecked. No prompt holds a name, an alias or a word of
    the descriptions.
    """
    direct = {c.name: _direct(prompt_set, concept_set, c) for c in concept_set.concepts}
    vocabulary = Vocabulary(base)
    result: dict[str, tuple[str, ...]] = {}
    for concept in concept_set.concepts if targets is None else targets:
        against = [text for name, texts in direct.items() if name != concept.name for text in texts]
        goal = SearchObjective(base, direct[concept.name], against)
        descriptions = [prompt.text for prompt in prompt_set.axis("indirect", concept_set, concept)]
        banned = banned_for(concept, descriptions)
        kept: dict[str, tuple[float, float]] = {}
        for turn in range(ROUNDS):
            restarts = range(turn * RESTARTS, (turn + 1) * RESTARTS)
            seeds = [restart_seed(seed, concept.name, restart) for restart in restarts]
            found = {f.text: f for f in (search(base, goal, vocabulary, banned, config, s) for s in seeds)}
            shares = _detection_rates(base, recipe, judge, concept, list(found)) if judge else dict.fromkeys(found, 1.0)
            kept |= {
                text: (shares[text], f.similarity) for text, f in found.items() if shares[text] >= MIN_DETECTION_RATE
            }
            if len(kept) >= per_concept or judge is None:
                break
        result[concept.name] = tuple(sorted(kept, key=lambda text: kept[text], reverse=True)[:per_concept])
        if on_concept:
            on_concept(concept.name, result[concept.name])
    return result


def _direct(prompt_set: PromptSet, concept_set: ConceptSet, concept: Concept) -> list[str]:
    own = [prompt.text for prompt in prompt_set.axis("forget", concept_set, concept)]
    return own or [prompt_of(concept.phrase)]


def _detection_rates(
    base: Base, recipe: Recipe, judge: Judge, concept: Concept, texts: Sequence[str]
) -> Mapping[str, float]:
    """The share of each prompt's images in which the judge finds the concept; an unreadable verdict is no
    find.
    """
    requests = [ImageRequest(text, seed) for text in texts for seed in CHECK_SEEDS]
    not_finite: set[int] = set()
    images = sample(base, recipe, requests, on_not_finite=not_finite.add)
    found = verdicts(judge, images, [concept] * len(requests), image_errors(images, not_finite))
    per_text = len(CHECK_SEEDS)
    return {
        text: sum(bool(v.present) for v in found[i * per_text : (i + 1) * per_text]) / per_text
        for i, text in enumerate(texts)
    }
