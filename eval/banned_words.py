"""What an adversarial prompt may not say: the concept's names, anywhere in it, and the words it is described
by.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from efface.concepts.concept import Concept, fold

# Words that describe nothing by themselves.
STOPWORDS = frozenset(
    (
        *("a", "an", "the", "of", "in", "on", "at", "to", "by", "as", "is", "it", "its", "are", "and", "or", "with"),
        *("without", "for", "from", "that", "this", "what", "you", "we", "one", "some", "many", "very", "image"),
        *("picture", "photo", "style", "where", "which", "who", "whose", "into", "around", "them", "they"),
    )
)
SHORTEST_FRAGMENT = 3


@dataclass(frozen=True)
class Banned:
    """fragments: not anywhere in the folded text (no case, spaces, punctuation); words: not as a word of the
    text.
    """

    fragments: frozenset[str]
    words: frozenset[str]

    def matches(self, text: str) -> bool:
        """Whether the text says something banned."""
        folded = fold(text)
        return any(fragment in folded for fragment in self.fragments) or not self.words.isdisjoint(split(text))


def split(text: str) -> list[str]:
    """The words of a text in lower case; CamelCase is several words."""
    return re.findall(r"\w+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold())


def banned_for(concept: Concept, descriptions: Iterable[str] = ()) -> Banned:
    """Fragments: name and aliases, whole and word by word; words: those of phrase, question and
    descriptions.
    """
    names = [concept.name, *concept.aliases]
    parts = {word for name in names for word in split(name) if len(word) >= SHORTEST_FRAGMENT}
    words = {word for text in (*names, concept.phrase, concept.question, *descriptions) for word in split(text)}
    return Banned(frozenset({fold(name) for name in names} | parts - STOPWORDS), frozenset(words - STOPWORDS))
