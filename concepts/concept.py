"""Concepts and concept sets: what can be forgotten, what is close to it, and what must stay.

A concept set is a versioned YAML file, shipped in `concepts/data/` or given by its path. It is checked once,
on reading; afterwards every name in it stands for a concept.

Some of the concepts are *held out*: only judged, and never seen by a method, unless they are what it is to forget. A
method that holds the very concepts still on which it is scored would be scored on what it was given.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from efface.concepts.shipped import data_names, find_data
from efface.config_files import StrictModel, read_config
from efface.errors import UserError, did_you_mean

Kind = Literal["object", "animal", "style", "scene", "action", "celebrity", "nsfw"]


def fold(name: str) -> str:
    """`name` without case, spaces and punctuation: "BlueJay", "blue_jay" and "Blue Jay" are one."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(character for character in text if unicodedata.category(character)[0] not in "ZPC")


def _printable(name: str) -> str:
    if not fold(name) or not name.isprintable():
        raise ValueError("a name needs a letter or a digit, and stands on one line")
    return name


def _plain(text: str) -> str:
    """`text` without case."""
    return unicodedata.normalize("NFKC", text).casefold()


@lru_cache(maxsize=10_000)
def _whole_words(*names: str) -> re.Pattern[str]:
    """Matches each of some names, in plain text, where it stands as a word; where there is none, nothing."""
    either = "|".join(re.escape(_plain(name)) for name in names)
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)" if names else r"(?!)")


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Name = Annotated[Text, AfterValidator(_printable)]


class Concept(StrictModel):
    """One concept: how it is named, how it is asked for in a prompt, and how a judge is asked about it."""

    name: Name = Field(description="the one name it has in plans, tables and reports")
    kind: Kind = Field(description="by which some methods word their prompts")
    phrase: Text = Field(description="how a prompt asks for it, with its article: 'a cat'")
    question: Text = Field("", description="how a judge is asked: 'a Blue Jay bird'; the phrase where not given")
    aliases: tuple[Name, ...] = Field((), description="other names and spellings it is found by")
    anchor: Text | None = Field(None, description="what it is mapped to: a concept of the set, or a plain phrase")
    adjacent: tuple[Name, ...] = Field((), description="concepts that look like it and must stay")
    retained: Literal["others"] | tuple[Name, ...] = Field(
        "others",
        description="concepts that must stay; 'others': all other concepts of the set and its retained ones, but no "
        "neighbour",
    )
    held_out: bool = Field(False, description="only judged: shown to no method, unless it is what is to be forgotten")

    def is_named_in(self, text: str) -> bool:
        """Whether a text holds the concept's name or an alias as whole words; case does not count."""
        return bool(_whole_words(self.name, *self.aliases).search(_plain(text)))

    @model_validator(mode="before")
    @classmethod
    def _question_is_the_phrase(cls, data: Any) -> Any:
        if isinstance(data, dict) and "phrase" in data:
            return {"question": data["phrase"], **data}
        return data


class ConceptSet(StrictModel):
    """A named, versioned list of concepts; beside it those that are only asked for as adjacent or as retained."""

    name: Name = Field(description="in commands, campaigns and tables")
    version: int = Field(ge=1, description="of the list")
    concepts: tuple[Concept, ...] = Field(min_length=1)
    neighbours: tuple[Concept, ...] = Field((), description="asked for where a concept names them as adjacent")
    retained: tuple[Concept, ...] = Field((), description="asked for as retained beside all other concepts")
    judge: Name | None = Field(
        None, description="who judges them where nobody else is named; default: the base's judge"
    )

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        owner: dict[str, int] = {}
        for position, concept in enumerate(self.all):
            for name in (concept.name, *concept.aliases):
                first = owner.setdefault(fold(name), position)
                if first != position:
                    raise ValueError(
                        f"concept '{concept.name}' is called '{name}', which already means "
                        f"'{self.all[first].name}', names and aliases should be unique"
                    )
        for concept in self.all:
            self._check_references(concept, "adjacent", concept.adjacent)
            if concept.retained != "others":
                self._check_references(concept, "retained", concept.retained)
            self._check_anchor(concept)
        return self

    def _check_anchor(self, concept: Concept) -> None:
        """An anchor that says the same as the concept maps it to itself: nothing would be forgotten.

        One that is held out would be seen by every method that maps to it.
        """
        if concept.anchor is None:
            return
        own = {fold(text) for text in (concept.name, *concept.aliases, concept.phrase, concept.question)} - {""}
        if not own.isdisjoint(map(fold, (concept.anchor, self.anchor_phrase(concept)))):
            raise ValueError(f"concept '{concept.name}' is its own anchor, should be something else")
        meant = self.meant_by(concept.anchor)
        if meant and meant.held_out:
            raise ValueError(
                f"concept '{concept.name}' has the anchor '{concept.anchor}', which is held out, should be a concept "
                "that methods may see"
            )

    def _check_references(self, concept: Concept, key: str, names: Sequence[str]) -> None:
        seen: set[str] = set()
        for name in names:
            other = self._by_name.get(fold(name))
            where = f"concept '{concept.name}', {key}:"
            if other is None:
                known = [known.name for known in self.all]
                raise ValueError(f"{where} '{name}' is not in this set, {did_you_mean(name, known)}")
            if other is concept:
                raise ValueError(f"{where} '{name}' is the concept itself, should be another one")
            if other.name in seen:
                raise ValueError(f"{where} '{name}' is listed twice")
            seen.add(other.name)

    @property
    def all(self) -> tuple[Concept, ...]:
        """The concepts, the neighbours, the retained ones. Any of them can be a target."""
        return self.concepts + self.neighbours + self.retained

    @cached_property
    def _by_name(self) -> dict[str, Concept]:
        return {fold(name): concept for concept in self.all for name in (concept.name, *concept.aliases)}

    @cached_property
    def _by_phrase(self) -> dict[str, Concept]:
        return {fold(concept.phrase): concept for concept in reversed(self.all)} | self._by_name

    def meant_by(self, anchor: str) -> Concept | None:
        """The concept that an anchor says, by name, alias or phrase; None where it is a plain phrase."""
        return self._by_phrase.get(fold(anchor))

    def find(self, name_or_alias: str) -> Concept:
        """The concept or neighbour of that name or alias; case, spaces, underscores and hyphens do not count.

        Raises UserError with the nearest name where there is none.
        """
        concept = self._by_name.get(fold(name_or_alias))
        if concept is None:
            names = [concept.name for concept in self.all]
            nearest = did_you_mean(name_or_alias, names)
            raise UserError(f"unknown concept '{name_or_alias}' in concept set {self.name}: {nearest}")
        return concept

    def anchor_phrase(self, concept: Concept) -> str:
        """The prompt `concept` is mapped to: its anchor's phrase, or the anchor itself; "" without one."""
        if concept.anchor is None:
            return ""
        anchor = self._by_name.get(fold(concept.anchor))
        return anchor.phrase if anchor else concept.anchor

    def adjacent_to(self, concept: Concept) -> tuple[Concept, ...]:
        """The concepts listed as adjacent to `concept`, in the order of the file."""
        return tuple(self._by_name[fold(name)] for name in concept.adjacent)

    def retained_for(self, concept: Concept) -> tuple[Concept, ...]:
        """The concepts that must stay when `concept` goes; neighbours only where `retained` names them."""
        if concept.retained == "others":
            return tuple(other for other in self.concepts + self.retained if other.name != concept.name)
        return tuple(self._by_name[fold(name)] for name in concept.retained)

    def shown(self, targets: Collection[str] = ()) -> "ConceptSet":
        """The set as a method may see it that is to forget `targets` (names): without the other concepts held out."""
        kept = {concept.name for concept in self.all if not concept.held_out or concept.name in targets}

        def still(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(name for name in names if self._by_name[fold(name)].name in kept)

        def reduced(concepts: Sequence[Concept]) -> Iterator[Concept]:
            for concept in concepts:
                if concept.name in kept:
                    retained = concept.retained if concept.retained == "others" else still(concept.retained)
                    yield concept.model_copy(update={"adjacent": still(concept.adjacent), "retained": retained})

        return ConceptSet.model_construct(
            name=self.name,
            version=self.version,
            concepts=tuple(reduced(self.concepts)),
            neighbours=tuple(reduced(self.neighbours)),
            retained=tuple(reduced(self.retained)),
            judge=self.judge,
        )

    def held_out_in(self, text: str, targets: Collection[str] = ()) -> Concept | None:
        """The first concept held out, but for `targets` (names), that `text` names by whole words."""
        for found in self._held_out_names.finditer(_plain(text)):
            concept = self.find(found[0])
            if concept.name not in targets:
                return concept
        return None

    @cached_property
    def _held_out_names(self) -> re.Pattern[str]:
        """Matches every name and alias of what is held out, in plain text."""
        held_out = [concept for concept in self.all if concept.held_out]
        names = {_plain(name) for concept in held_out for name in (concept.name, *concept.aliases)}
        longest_first = sorted(names, key=lambda name: (-len(name), name))
        return _whole_words(*longest_first)

    def kinds(self) -> dict[Kind, int]:
        """How many of the concepts (neighbours not counted) are of each kind, in the order they appear."""
        return dict(Counter(concept.kind for concept in self.concepts))

    @cached_property
    def sha256(self) -> str:
        """64 hex digits over all that the set says of concepts, defaults included: neither layout nor judge count.

        Of a set that holds nothing out and has no retained list, it is what it was before there were these.
        """
        silent: dict[str, Any] = {
            key: {i: {"held_out"} for i, concept in enumerate(getattr(self, key)) if not concept.held_out}
            for key in ("concepts", "neighbours", "retained")
        }
        exclude = {**silent, "judge": True} if self.retained else {**silent, "judge": True, "retained": True}
        return hashlib.sha256(self.model_dump_json(exclude=exclude).encode()).hexdigest()


def concept_set_names() -> list[str]:
    """Names of the shipped concept sets, sorted."""
    return data_names(".yaml")


def load_concept_set(name_or_path: str | Path) -> ConceptSet:
    """The concept set of that name, or in that YAML file; any error in it is a UserError."""
    return read_config(ConceptSet, find_data("concept set", name_or_path, ".yaml"))
