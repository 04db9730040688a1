"""Prompt sets: the texts by which a concept is asked for, and the five axes they are scored on.

`forget`, `indirect` and `adversarial` ask for the target itself; `adjacent` and `retain` ask for the concepts
near it and for those that must stay, each by its own direct prompts.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompt_csv import Group, PromptRow, read_prompt_csv, write_prompt_csv
from efface.concepts.shipped import data_names, find_data
from efface.errors import UserError

Axis = Literal["forget", "indirect", "adversarial", "adjacent", "retain"]
AXES: tuple[Axis, ...] = get_args(Axis)
TARGET_AXES: tuple[Axis, ...] = ("forget", "indirect", "adversarial")
KEPT_AXES: tuple[Axis, ...] = ("adjacent", "retain")

_GROUP: dict[Axis, Group] = {"forget": "direct", "indirect": "indirect", "adversarial": "adversarial"}


@dataclass(frozen=True)
class Prompt:
    """One text asked of a model: for which target, on which axis, and which concept it asks for."""

    axis: Axis
    concept: str
    asked_concept: str
    text: str
    prompt_id: str


def prompt_of(phrase: str) -> str:
    """The prompt that asks for a concept which no prompt set has a row for."""
    return f"an image of {phrase}"


def prompt_id(text: str) -> str:
    """First 12 hex digits of the SHA-256 of the text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class PromptSet:
    """Concept name -> the prompts that ask for it; `name` is the shipped name or the path of the file."""

    name: str
    rows: Mapping[str, PromptRow]

    def for_target(
        self, concepts: ConceptSet, target: Concept, limits: Mapping[Axis, int] | None = None
    ) -> tuple[Prompt, ...]:
        """Every prompt asked of a model that forgot `target`, axis by axis, in the order of the files.

        `limits` holds, per axis, at most how many prompts per asked concept (>= 0; the first ones); an axis
        with the limit 0 is not asked. Raises UserError where an axis that is asked has no prompts.
        """
        limits = limits or {}
        requested = [axis for axis in AXES if limits.get(axis) != 0]
        prompts = {axis: self.axis(axis, concepts, target, limits.get(axis)) for axis in requested}
        for axis in requested:
            if not prompts[axis]:
                raise UserError(self._no_prompts_message(axis, concepts, target))
        return tuple(prompt for axis in requested for prompt in prompts[axis])

    def axis(self, axis: Axis, concepts: ConceptSet, target: Concept, limit: int | None = None) -> tuple[Prompt, ...]:
        """The prompts of one axis for `target`, at most `limit` per asked concept; () if there are none."""
        texts: dict[str, tuple[str, ...]] = {}
        if axis in TARGET_AXES:
            row = self.rows.get(target.name)
            texts[target.name] = getattr(row, _GROUP[axis]) if row else ()
        else:
            others = concepts.adjacent_to(target) if axis == "adjacent" else concepts.retained_for(target)
            for other in others:
                row = self.rows.get(other.name)
                texts[other.name] = row.direct if row else (prompt_of(other.phrase),)
        return tuple(
            Prompt(axis, target.name, requested, text, prompt_id(text))
            for requested in texts
            for text in texts[requested][:limit]
        )

    def counts(self, concepts: ConceptSet, target: Concept) -> dict[Axis, int]:
        """How many prompts each axis has for `target`, zeros included: what a listing shows."""
        return {axis: len(self.axis(axis, concepts, target)) for axis in AXES}

    def csv(self, concepts: ConceptSet) -> str:
        """The set as the text of a CSV file that reads back to the same prompts."""
        return write_prompt_csv(self.rows, concepts)

    @property
    def sha256(self) -> str:
        """64 hex digits over names and prompts: neither the file's name nor the order of its rows counts."""
        rows = {name: [row.direct, row.indirect, row.adversarial] for name, row in self.rows.items()}
        text = json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _no_prompts_message(self, axis: Axis, concepts: ConceptSet, target: Concept) -> str:
        """The sentence for an axis without prompts: where they are missing, and how to supply them."""
        leave_out = f"or leave the axis out with the limit {axis}=0"
        if axis not in TARGET_AXES:
            key = "adjacent" if axis == "adjacent" else "retained"
            return (
                f"concept set {concepts.name}: '{target.name}' has no {key} concepts to ask for, "
                f"name some under its key '{key}', {leave_out}"
            )
        row = self.rows.get(target.name)
        if row is None:
            return f"prompt set {self.name}: no row for '{target.name}', add one with its prompts, {leave_out}"
        supply = "write some that show it without its name" if axis == "indirect" else "write some or run an attack"
        return (
            f"prompt set {self.name}, row {row.row}, column {axis}_prompt: no {axis} prompt for "
            f"'{target.name}', {supply} and give the CSV that has them, {leave_out}"
        )


def prompt_set_names() -> list[str]:
    """Names of the shipped prompt sets, sorted."""
    return data_names(".csv")


def load_prompt_set(name_or_path: str | Path, concepts: ConceptSet) -> PromptSet:
    """The prompt set of that name, or in that CSV file, for the concepts of a set; an error in it is a UserError."""
    path = find_data("prompt set", name_or_path, ".csv")
    return PromptSet(str(name_or_path), read_prompt_csv(path, concepts))
