"""What a text encoder reads of a prompt: so many tokens, 75 of CLIP's 77 beside those for begin and end, and no more.

What stands behind them is never asked for: a model that is asked "very very … cat" beyond the window is never asked for
the cat, and every method seems to have forgotten it. Diffusers cuts such prompts too, so those of the literature are
used, and named.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from efface.concepts.concept import Concept, ConceptSet, fold
from efface.concepts.prompt_csv import GROUPS
from efface.concepts.prompts import PromptSet, prompt_of
from efface.errors import UserError

NAMED = 5
"""Prompts that one line names; `efface prompts` names all."""


@dataclass(frozen=True)
class Reading:
    """A text as the encoder takes it."""

    tokens: tuple[int, ...]
    """Of the whole text, without begin and end, and without those that stand for nothing the tokenizer knows."""
    length: int
    """Tokens of the whole text, without begin and end."""
    kept: str
    """The part of the text that is read; case and spaces may differ."""


@dataclass(frozen=True)
class TextWindow:
    """How the text encoder of a base reads."""

    base: str
    size: int
    """Tokens that are read of a text."""
    read: Callable[[Sequence[str]], list[Reading]]


@dataclass(frozen=True)
class CutPrompt:
    """A prompt whose end is not read, and where it stands."""

    concept: str
    row: int
    column: str
    tokens: int
    unnamed: bool
    """Whether the concept's name, alias or phrase stands in it only behind what is read."""

    def __str__(self) -> str:
        lost = f", and what asks for '{self.concept}' stands behind them" if self.unnamed else ""
        return f"row {self.row}, column {self.column} ({self.tokens} tokens{lost})"


def cut_prompts(
    prompts: PromptSet, concepts: ConceptSet, window: TextWindow, texts: Collection[str] | None = None
) -> tuple[CutPrompt, ...]:
    """The prompts of a set that are longer than the window, in the order of the file; `texts`: of these alone.

    Raises UserError for a prompt of which nothing is read.
    """
    found = []
    for name, row in prompts.rows.items():
        for column, text in (entry for group in GROUPS for entry in row.prompts(group)):
            if texts is not None and text not in texts:
                continue
            (reading,) = window.read([text])
            if not reading.tokens:
                raise UserError(
                    f"{prompts.name}, row {row.row}, column {column}: the tokenizer of base '{window.base}' knows "
                    f"nothing in '{text}', so nothing would be asked for"
                )
            if reading.length > window.size:
                unnamed = _asks(concepts.find(name), text) and not _asks(concepts.find(name), reading.kept)
                found.append(CutPrompt(name, row.row, column, reading.length, unnamed))
    return tuple(found)


def check_prompts(
    prompts: PromptSet, concepts: ConceptSet, window: TextWindow, texts: Collection[str]
) -> tuple[str, ...]:
    """A line about those of the prompts `texts` that are cut; () if none is. Raises UserError for what says nothing."""
    cut = cut_prompts(prompts, concepts, window, texts)
    return (summary(cut, prompts, window, len(texts)),) if cut else ()


def summary(cut: Sequence[CutPrompt], prompts: PromptSet, window: TextWindow, of: int, named: int = NAMED) -> str:
    """One line about the prompts that are cut, and where the first `named` of them stand."""
    more = f"; and {len(cut) - named} more, which `efface prompts` names" if 0 < named < len(cut) else ""
    some = f": {'; '.join(map(str, cut[:named]))}" if named else ""
    return (
        f"{prompts.name}: {len(cut)} of {of} prompts are longer than the {window.size} tokens that the text encoder of "
        f"base '{window.base}' reads, and nothing behind those is asked for{some}{more}"
    )


def check_concepts(concepts: ConceptSet, window: TextWindow) -> None:
    """Raises UserError where a phrase or an anchor is longer than the window, says nothing, or the two say the same."""
    for concept in concepts.all:
        phrase = _read(concepts, concept, "phrase", concept.phrase, window)
        anchor_phrase = concepts.anchor_phrase(concept)
        if anchor_phrase and _read(concepts, concept, "anchor", anchor_phrase, window).tokens == phrase.tokens:
            raise UserError(
                f"concept set {concepts.name}: concept '{concept.name}' is its own anchor: to the text encoder of base "
                f"'{window.base}' '{anchor_phrase}' says the same as '{concept.phrase}', should be something else"
            )


def _read(concepts: ConceptSet, concept: Concept, key: str, text: str, window: TextWindow) -> Reading:
    reading, prompt = window.read([text, prompt_of(text)])
    where = f"concept set {concepts.name}: concept '{concept.name}', {key}:"
    if not reading.tokens:
        raise UserError(f"{where} the tokenizer of base '{window.base}' knows nothing in '{text}', should be words")
    if prompt.length > window.size:
        raise UserError(
            f"{where} a prompt with it has {prompt.length} tokens, and the text encoder of base '{window.base}' reads "
            f"{window.size}, should be shorter"
        )
    return reading


def _asks(concept: Concept, text: str) -> bool:
    """Whether a text holds what the concept is called or asked for by."""
    folded = fold(text)
    return any(fold(name) in folded for name in (concept.name, *concept.aliases, concept.phrase))
