"""Prompt sets as CSV: the challenge's file as it comes, and ours, read strictly.

Columns are `concept_name` and `direct_prompt`, and where there are any `concept_type` (a label, not read),
`indirect_prompt` and `adversarial_prompt`; prompt columns may be numbered (`direct_prompt_1`, `_2`, …). One
row per concept, in UTF-8, with or without a byte order mark. Rows are counted as a spreadsheet shows them:
the header is row 1, blank rows count, a cell of several lines does not make several rows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from efface.concepts.concept import ConceptSet
from efface.concepts.csv_records import bad_byte, read_records
from efface.concepts.published_formats import INDEX, OURS, column_meant, known_format
from efface.csv_tables import csv_table
from efface.errors import UserError
from efface.text import csv_text

Group = Literal["direct", "indirect", "adversarial"]
GROUPS: tuple[Group, ...] = ("direct", "indirect", "adversarial")
MAX_CHARACTERS = 2000  # a text encoder reads 77 tokens: a longer cell is a broken file

_NAMELESS = "has text, and its column has no name in the header"
_PROMPT_COLUMN = re.compile(r"(direct|indirect|adversarial)_prompt(?:_([1-9][0-9]{0,3}))?", re.ASCII)


@dataclass(frozen=True)
class PromptRow:
    """The prompts that ask for one concept; `row` and `columns` (of each group) are where they stand in the file."""

    direct: tuple[str, ...]
    indirect: tuple[str, ...] = ()
    adversarial: tuple[str, ...] = ()
    row: int = 0
    columns: Mapping[Group, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)

    def prompts(self, group: Group) -> tuple[tuple[str, str], ...]:
        """(column, prompt) of each prompt of a group."""
        texts: tuple[str, ...] = getattr(self, group)
        named = self.columns.get(group, ())
        return tuple((named[i] if i < len(named) else f"{group}_prompt_{i + 1}", text) for i, text in enumerate(texts))


def read_prompt_csv(path: Path, concepts: ConceptSet) -> dict[str, PromptRow]:
    """Concept name (as `concepts` spells it) -> its prompts, in the order of the file.

    Raises UserError with file, row and column at the first error.
    """
    records = read_records(path)
    header_row, header = next(records, (0, []))
    if not header:
        raise UserError(f"{path}: is empty, should have a header with the columns {', '.join(OURS)}")
    table = _Header(path, header_row, header)
    rows: dict[str, PromptRow] = {}
    for number, cells in records:
        name, prompts = table.read(number, cells, concepts)
        if name in rows:
            raise UserError(
                f"{path}, row {number}, column concept_name: '{name}' already has row {rows[name].row}, "
                "should be one row per concept"
            )
        rows[name] = prompts
    if not rows:
        raise UserError(f"{path}: has a header and no rows, should have one row per concept")
    return rows


def write_prompt_csv(rows: Mapping[str, PromptRow], concepts: ConceptSet) -> str:
    """`rows` as the text of a CSV that `read_prompt_csv` reads back as they are; no cell of it is a formula."""
    widths = {group: max(1, *(len(getattr(row, group)) for row in rows.values())) for group in GROUPS}
    columns = [f"{group}_prompt_{k}" for group, width in widths.items() for k in range(1, width + 1)]
    lines = []
    for name, row in rows.items():
        padded = ([*getattr(row, group), *[""] * (width - len(getattr(row, group)))] for group, width in widths.items())
        lines.append([concepts.find(name).kind, name, *(cell for group in padded for cell in group)])
    return csv_table(["concept_type", "concept_name", *columns], lines, line_end="\r\n")


class _Header:
    """The columns of one file, and how its rows are read by them."""

    def __init__(self, path: Path, row: int, names: list[str]) -> None:
        self.path = path
        self.names = [" ".join(name.casefold().split()) for name in names]
        self.prompts: dict[Group, dict[int, int]] = {group: {} for group in GROUPS}  # group -> number -> position
        known = known_format(self.names)
        if known:
            raise UserError(f"{path}, row {row}: {known.advice(self.names)}")
        for position, name in enumerate(self.names):
            location = f"{path}, row {row}, column {position + 1}"
            _check_text(location, name)
            match = _PROMPT_COLUMN.fullmatch(name)
            if name and name in self.names[:position]:
                raise UserError(f"{location}: '{name}' is there twice, should be one column of each name")
            if match:
                group, number = _group(match[1]), int(match[2] or 1)
                if number in self.prompts[group]:
                    raise UserError(f"{location}: '{name}' means the same as '{group}_prompt', keep one of them")
                self.prompts[group][number] = position
            elif name and name not in OURS:
                raise UserError(f"{location}: unknown column '{_short(name)}', {column_meant(name, position)}")
        if "concept_name" not in self.names:
            raise UserError(f"{path}, row {row}: column concept_name is missing")
        if not self.prompts["direct"]:
            raise UserError(f"{path}, row {row}: column direct_prompt (or direct_prompt_1) is missing")
        self.columns: dict[Group, tuple[str, ...]] = {
            group: tuple(self.names[position] for _, position in sorted(self.prompts[group].items()))
            for group in GROUPS
        }

    def read(self, row: int, cells: list[str], concepts: ConceptSet) -> tuple[str, PromptRow]:
        if len(cells) != len(self.names):
            raise UserError(
                f"{self.path}, row {row}: has {len(cells)} cells and the header {len(self.names)}, should be "
                "as many (a prompt with a comma in it stands in quotes)"
            )
        cells = [csv_text(cell) for cell in cells]
        for position, cell in enumerate(cells):
            _check_text(self._location(row, position), cell)
            if cell and not self.names[position]:
                wrong = f"has no name in the header, and {INDEX}" if position == 0 and cell.isdecimal() else _NAMELESS
                raise UserError(f"{self._location(row, position)}: {wrong}")
        position = self.names.index("concept_name")
        if not cells[position]:
            raise UserError(f"{self._location(row, position)}: empty, should be the name of a concept")
        try:
            name = concepts.find(" ".join(cells[position].split())).name
        except UserError as error:
            raise UserError(f"{self._location(row, position)}: {error}") from None
        direct, indirect, adversarial = (self._group_prompts(row, cells, group) for group in GROUPS)
        if not direct:
            first = self.prompts["direct"][min(self.prompts["direct"])]
            raise UserError(f"{self._location(row, first)}: empty, every concept needs a direct prompt")
        return name, PromptRow(direct, indirect, adversarial, row, self.columns)

    def _group_prompts(self, row: int, cells: list[str], group: Group) -> tuple[str, ...]:
        positions = [position for _, position in sorted(self.prompts[group].items())]
        while positions and not cells[positions[-1]]:
            positions.pop()
        seen: dict[str, int] = {}
        for position in positions:
            location = self._location(row, position)
            if not cells[position]:
                raise UserError(f"{location}: empty, though {self.names[positions[-1]]} is filled; leave no gap")
            # Text encoders read neither case nor runs of spaces: such a pair is one image, counted twice.
            first = seen.setdefault(" ".join(cells[position].casefold().split()), position)
            if first != position:
                raise UserError(f"{location}: the same prompt as in column {self.names[first]}")
        return tuple(cells[position] for position in positions)

    def _location(self, row: int, position: int) -> str:
        return f"{self.path}, row {row}, column {self.names[position] or position + 1}"


def _check_text(location: str, cell: str) -> None:
    bad = bad_byte(cell)
    if bad:
        raise UserError(f"{location}: not UTF-8 text (byte {bad}), save the file as UTF-8")
    if "\0" in cell:
        raise UserError(f"{location}: holds a NUL byte, should be text")
    if len(cell) > MAX_CHARACTERS:
        raise UserError(f"{location}: {len(cell)} characters, should be at most {MAX_CHARACTERS}")


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:60]}…"


def _group(name: str) -> Group:
    return next(group for group in GROUPS if group == name)
