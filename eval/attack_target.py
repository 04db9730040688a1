"""What an attack is after: a concept to bring back, what to keep it apart from, and what its prompts may not say."""

from dataclasses import dataclass

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet, prompt_of
from efface.eval.banned_words import Banned, banned_for
from efface.files import content_id


@dataclass(frozen=True)
class AttackTarget:
    """A concept to be brought back."""

    concept: Concept
    prompts: tuple[str, ...]
    """Direct prompts of the concept, at least one."""
    others: tuple[str, ...]
    """Direct prompts of the other concepts of the set."""
    banned: Banned
    """What no prompt of a static search may say: one that matches is never kept. Adaptive attacks are free to."""

    @property
    def id(self) -> str:
        """16 hex digits over all that decides what a search for it comes to."""
        banned = [sorted(self.banned.fragments), sorted(self.banned.words)]
        return content_id([self.concept.name, self.prompts, self.others, banned])


def attack_target(concept: Concept, concept_set: ConceptSet, prompt_set: PromptSet) -> AttackTarget:
    """The target that a concept of a set is, by the prompts of a prompt set."""
    others = [other for other in concept_set.concepts if other.name != concept.name]
    descriptions = [prompt.text for prompt in prompt_set.axis("indirect", concept_set, concept)]
    return AttackTarget(
        concept=concept,
        prompts=tuple(_direct(prompt_set, concept_set, concept)),
        others=tuple(text for other in others for text in _direct(prompt_set, concept_set, other)),
        banned=banned_for(concept, descriptions),
    )


def _direct(prompt_set: PromptSet, concept_set: ConceptSet, concept: Concept) -> list[str]:
    own = [prompt.text for prompt in prompt_set.axis("forget", concept_set, concept)]
    return own or [prompt_of(concept.phrase)]
