"""How the concept to forget is named in the prompts that a method trains on.

By its phrase ("a cat"), as in the papers; with `paraphrases` also by its aliases, by what a judge is asked for and by
descriptions, one drawn for every batch: what is asked for in other words is then forgotten too.
"""

import re
from collections.abc import Sequence

import torch
from pydantic import Field, model_validator

from efface.concepts.concept import Concept
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import encode_prompts
from efface.train.method import MethodConfig
from efface.train.seeds import choice


class ConditionConfig(MethodConfig):
    """The settings of a method that trains on prompts of the concept."""

    paraphrases: bool = Field(
        False, description="draw the concept's prompt from its phrase, names, aliases and descriptions; papers: no"
    )
    descriptions: dict[str, tuple[str, ...]] = Field(
        {}, description="concept -> further prompts that mean it, for paraphrases: 'a furry pet that purrs'"
    )

    @model_validator(mode="after")
    def _descriptions_are_for_paraphrases(self) -> "ConditionConfig":
        if self.descriptions and not self.paraphrases:
            raise ValueError("descriptions are read with paraphrases: true alone")
        return self


class Conditions:
    """The encoded prompts of each concept to forget."""

    def __init__(self, base: Base, concepts: Sequence[Concept], config: ConditionConfig) -> None:
        self.rows = [encode_prompts(base, prompts_of(concept, config)) for concept in concepts]
        """For each concept the rows of its prompts, the phrase first."""

    def number(self, rng: torch.Generator) -> int:
        """One of the concepts, 0, 1, …; nothing is drawn where there is no choice."""
        return choice(range(len(self.rows)), rng)

    def of(self, concept: int, rng: torch.Generator) -> Conditioning:
        """One row: one of the prompts of concept 0, 1, …; nothing is drawn where there is no choice."""
        return self.rows[concept][choice(range(len(self.rows[concept])), rng)]


def prompts_of(concept: Concept, config: ConditionConfig) -> list[str]:
    """The prompts that a concept is trained on, its phrase first, each once."""
    if not config.paraphrases:
        return [concept.phrase]
    names = [renamed(concept, name) for name in (concept.name, *concept.aliases)]
    return list(dict.fromkeys([concept.phrase, *names, concept.question, *config.descriptions.get(concept.name, ())]))


def templated(concept: Concept, config: ConditionConfig, templates: Sequence[str]) -> list[str]:
    """The same in each of some templates, `{}` for a prompt and `{name}` for the bare name; each text once."""
    texts = [text.format(prompt, name=concept.name) for prompt in prompts_of(concept, config) for text in templates]
    return list(dict.fromkeys(texts))


def renamed(concept: Concept, name: str) -> str:
    """The concept's phrase with another of its names: "a cat" and "feline" make "a feline"; else the name alone."""
    if name == concept.name:
        return concept.phrase
    own = re.compile(rf"\b{re.escape(concept.name)}\b", re.IGNORECASE)
    phrase = own.sub(lambda found: name, concept.phrase)
    if phrase == concept.phrase:
        return name
    return re.sub(r"^an? (?=(\w))", lambda found: "an " if found[1].lower() in "aeiou" else "a ", phrase)


def without_article(phrase: str) -> str:
    """A concept's phrase without its article: some authors prompt with bare names ("blue jay")."""
    return re.sub(r"^(an?|the) ", "", phrase)
