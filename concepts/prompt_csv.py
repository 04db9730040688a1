"""Prompt sets as CSV: the challenge's file as it comes, and ours, read strictly.

Columns are `concept_name` and `direct_prompt`, and where there are any `concept_type` (a label, not read),
`indirect_prompt` and `adversarial_prompt`; prompt columns may be numbered (`direct_prompt_1`, `_2`, …). One
row per concept, in UTF-8, with or without a byte order mark. Rows are counted as a spreadsheet shows them:
the header is row 1, blank rows count, a cell of several lines does not make several rows.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from efface.concepts.concept import ConceptSet
from efface.errors import UserError, did_you_mean

Group = Literal["direct", "indirect", "adversarial"]
GROUPS: tuple[Group, ...] = ("direct", "indirect", "adversarial")
MAX_CHARACTERS = 2000  # a text encoder reads 77 tokens: a longer cell is a broken file

_COLUMNS = ("concept_type", "concept_name", *(f"{group}_prompt" for group in GROUPS))
_PROMPT_COLUMN = re.compile(r"(direct|indirect|adversarial)_prompt(?:_([1-9][0-9]{0,3}))?", re.ASCII)


@dataclass(frozen=True)
class PromptRow:
    """The prompts that ask for one concept; `row` is its place in the file."""

    direct: tuple[str, ...]
    indirect: tuple[str, ...] = ()
    adversarial: tuple[str, ...] = ()
    row: int = 0


def read_prompt_csv(path: Path, concepts: ConceptSet) -> dict[str, PromptRow]:
    """Concept name (as `concepts` spells it) -> its prompts, in the order of the file.

    Raises UserError with file, row and column at the first fault.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    records = _records(path, data)
    header_row, header = next(records, (0, []))
    if not header:
        raise UserError(f"{path}: is empty, should have a header with the columns {', '.join(_COLUMNS)}")
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
    """`rows` as the text of a CSV that `read_prompt_csv` reads back as they are."""
    widths = {group: max(1, *(len(getattr(row, group)) for row in rows.values())) for group in GROUPS}
    columns = [f"{group}_prompt_{k}" for group, width in widths.items() for k in range(1, width + 1)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["concept_type", "concept_name", *columns])
    for name, row in rows.items():
        padded = ([*getattr(row, group), *[""] * (width - len(getattr(row, group)))] for group, width in widths.items())
        writer.writerow([concepts.find(name).kind, name, *(cell for cells in padded for cell in cells)])
    return text.getvalue()


def _records(path: Path, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """(row, stripped cells) of every record that is not blank, the header first."""
    # A bad byte becomes a lone surrogate, which valid UTF-8 never holds: so its cell can be named.
    text = data.decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    while True:
        number += 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, row {number}: not valid CSV ({_reason(error, text)})") from None
        if record is None:
            return
        if any(cell.strip() for cell in record):
            yield number, [cell.strip() for cell in record]


def _reason(error: csv.Error, text: str) -> str:
    if _bad_byte(text):
        return "not UTF-8 text"
    if "end of data" in str(error) or "field limit" in str(error):
        return "a quoted cell is not closed"
    return str(error)


def _bad_byte(text: str) -> str | None:
    found = re.search("[\udc80-\udcff]", text)
    return f"0x{ord(found[0]) - 0xDC00:02x}" if found else None


class _Header:
    """The columns of one file, and how its rows are read by them."""

    def __init__(self, path: Path, row: int, names: list[str]) -> None:
        self.path = path
        self.names = [" ".join(name.casefold().split()) for name in names]
        self.prompts: dict[Group, dict[int, int]] = {group: {} for group in GROUPS}  # group -> number -> position
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
            elif name and name not in _COLUMNS:
                raise UserError(f"{location}: unknown column '{name}', {_column_meant(name)}")
        if "concept_name" not in self.names:
            raise UserError(f"{path}, row {row}: column concept_name is missing")
        if not self.prompts["direct"]:
            raise UserError(f"{path}, row {row}: column direct_prompt (or direct_prompt_1) is missing")

    def read(self, row: int, cells: list[str], concepts: ConceptSet) -> tuple[str, PromptRow]:
        if len(cells) != len(self.names):
            raise UserError(
                f"{self.path}, row {row}: has {len(cells)} cells and the header {len(self.names)}, should be "
                "as many (a prompt with a comma in it stands in quotes)"
            )
        for position, cell in enumerate(cells):
            _check_text(self._location(row, position), cell)
            if cell and not self.names[position]:
                raise UserError(f"{self._location(row, position)}: has text, and its column has no name in the header")
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
        return name, PromptRow(direct, indirect, adversarial, row)

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
    bad = _bad_byte(cell)
    if bad:
        raise UserError(f"{location}: not UTF-8 text (byte {bad}), save the file as UTF-8")
    if "\0" in cell:
        raise UserError(f"{location}: holds a NUL byte, should be text")
    if len(cell) > MAX_CHARACTERS:
        raise UserError(f"{location}: {len(cell)} characters, should be at most {MAX_CHARACTERS}")


def _column_meant(name: str) -> str:
    if name.startswith(("adjacent", "retain")):
        return "adjacent and retained concepts are asked for by the direct prompts of their own rows"
    if ";" in name or " " in name:
        return "cells should be separated by commas"
    return did_you_mean(name, _COLUMNS)


def _group(name: str) -> Group:
    return next(group for group in GROUPS if group == name)
