"""Published prompt files as people download them: one prompt a row, in the columns of I2P, Ring-A-Bell and others, or
one prompt a line, as UnlearnCanvas has them.

`published_formats.py` knows the kinds. Such a file names no concept of ours, so it is no prompt set; an attack can try
its prompts on a model (`efface attack MODEL --attack published`).
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from efface.concepts.csv_records import bad_byte, read_lines, read_records
from efface.concepts.prompt_csv import MAX_CHARACTERS
from efface.concepts.published_formats import PROMPT_LIST, Format, known_format, labels_of_line
from efface.errors import UserError
from efface.files import local_path
from efface.text import csv_text

IMAGES = ".jpg", ".jpeg", ".png"
SEEDS = ("sd_seed", "evaluation_seed", "seed")
"""Columns that hold the seed by which a benchmark makes the image."""


@dataclass(frozen=True)
class PublishedPrompt:
    """A prompt as a benchmark has it; its concepts, in the file's own words, and seed where the file names them."""

    text: str
    concept: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class PublishedPrompts:
    """A published file that was read."""

    file: str
    format: Format
    prompts: tuple[PublishedPrompt, ...]
    ignored: tuple[str, ...]
    """Columns that nothing is read of."""
    empty: int
    """Rows without a prompt."""
    repeated: int = 0
    """Rows with the text of an earlier one, whose concepts the earlier one has too."""

    @property
    def concepts(self) -> dict[str, int]:
        """How many prompts there are of each concept that the file names; one row may name several."""
        return dict(Counter(name for prompt in self.prompts for name in split_concepts(prompt.concept)))


def split_concepts(cell: str) -> list[str]:
    """`violence, shocking` is two."""
    return [name for part in cell.split(",") if (name := part.strip())]


def published_format(path: Path) -> Format | None:
    """The kind of published file this is; None of one of ours. Raises UserError where it is no CSV."""
    if path.suffix.casefold() == ".txt":
        return PROMPT_LIST
    _, header = next(read_records(path), (0, []))
    return known_format([_plain(name) for name in header])


def read_published(name_or_path: str | Path) -> PublishedPrompts:
    """The prompts of a published file, each text once. Raises UserError with file, row and column."""
    path = local_path(name_or_path)
    return _read_list(path) if path.suffix.casefold() == ".txt" else _read_table(path)


def _read_list(path: Path) -> PublishedPrompts:
    """Of a text file."""
    found: dict[str, PublishedPrompt] = {}
    lines = list(read_lines(path))
    for number, text in lines:
        _check(f"{path}, line {number}", text)
        if text.casefold().endswith(IMAGES):
            raise UserError(f"{path}, line {number}: names an image, should be a prompt: take prompts.txt beside it")
        found.setdefault(text, PublishedPrompt(text, labels_of_line(text)))
    if not found:
        raise UserError(f"{path}: has no prompt, should have one a line")
    return PublishedPrompts(str(path), PROMPT_LIST, tuple(found.values()), (), 0, len(lines) - len(found))


def _read_table(path: Path) -> PublishedPrompts:
    """Of a CSV."""
    records = read_records(path)
    row, header = next(records, (0, []))
    names = [_plain(name) for name in header]
    form = known_format(names)
    if form is None:
        raise UserError(f"{path}, row {row}: has no column of a published prompt file, such as 'prompt'")
    places = {name: i for i, name in reversed(list(enumerate(names)))}
    seed_column = next((name for name in SEEDS if name in places), None)
    found: dict[str, PublishedPrompt] = {}
    empty = repeated = 0
    for row, cells in records:
        if len(cells) != len(names):
            raise UserError(f"{path}, row {row}: has {len(cells)} cells and the header {len(names)}, should be as many")
        text = csv_text(cells[places[form.prompt]])
        _check(f"{path}, row {row}, column {form.prompt}", text)
        if not text:
            empty += 1
            continue
        concept = cells[places[form.concept]] if form.concept in places else ""
        seed = _seed(cells[places[seed_column]]) if seed_column else None
        if text in found:
            repeated += 1
            earlier = found[text]
            labels = dict.fromkeys(split_concepts(earlier.concept) + split_concepts(concept))
            found[text] = replace(earlier, concept=", ".join(labels))
        else:
            found[text] = PublishedPrompt(text, concept, seed)
    if not found:
        raise UserError(f"{path}: has no prompt in its column '{form.prompt}', should have one a row")
    used = {form.prompt, form.concept, seed_column}
    ignored = tuple(name for name in names if name not in used)
    return PublishedPrompts(str(path), form, tuple(found.values()), ignored, empty, repeated)


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _seed(cell: str) -> int | None:
    """The seed in a cell, which pandas may have written as 42.0."""
    whole = cell.removesuffix(".0")
    return int(whole) if whole.isascii() and whole.isdecimal() and len(whole) < 20 else None


def _check(where: str, text: str) -> None:
    bad = bad_byte(text)
    if bad or "\0" in text:
        raise UserError(f"{where}: not UTF-8 text ({f'byte {bad}' if bad else 'a NUL'}), save the file as UTF-8")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where}: {len(text)} characters, should be at most {MAX_CHARACTERS}")
