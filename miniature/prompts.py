"""The world's concept set and prompt set, as the two files that `efface.concepts` reads.

Direct prompts name the concept; indirect ones describe it and hold neither its name nor an alias. Two of five
templates never occur in training. The adversarial columns are found by a search over tokens, not written here:
whatever an existing file holds in them is kept.
"""

import csv
import io
from pathlib import Path

import yaml

from efface.files import write_atomic
from efface.miniature.captions import HELD_OUT_TEMPLATES
from efface.miniature.vocabulary import CONCEPTS, OBJECTS, Words, article, siblings
from efface.miniature.world import USUAL_COLORS

PER_AXIS = 5
AXES = ("direct", "indirect", "adversarial")
COLUMNS = ["concept_type", "concept_name", *(f"{axis}_prompt_{n}" for axis in AXES for n in range(1, PER_AXIS + 1))]
GROUND_OF_COLOR = {"blue": "yellow", "yellow": "blue", "green": "red", "red": "green", "purple": "yellow"}


def _with_article(word: str) -> str:
    return f"{article(word)} {word}"


def direct_prompts(words: Words) -> list[str]:
    """Five prompts that name the concept."""
    if words.kind == "style":
        things = _things_for(words)
        return [
            f"{_with_article(things[0])} in {words.name} style",
            f"{_with_article(words.name)} picture of {_with_article(things[1])}",
            f"a photo of {_with_article(things[2])}, {words.name} style",
            f"something in {words.name} style",
            HELD_OUT_TEMPLATES[0].format(s=_with_article(things[3])) + f" in {words.name} style",
        ]
    color = USUAL_COLORS[words.name][0]
    ground = GROUND_OF_COLOR.get(color, "blue")
    return [
        f"a photo of {words.phrase}",
        f"a picture of {_with_article(color)} {words.name}",
        f"{words.phrase} on a {ground} background",
        *(template.format(s=words.phrase) for template in HELD_OUT_TEMPLATES),
    ]


def indirect_prompts(words: Words) -> list[str]:
    """Five prompts that describe the concept and never name it."""
    first, second, third, fourth, fifth = words.descriptions
    if words.kind == "style":
        things = _things_for(words)
        return [
            f"{_with_article(things[4])} {first}",
            f"a picture of {_with_article(things[5])}, {second}",
            f"a picture {third}",
            f"something {fourth}",
            HELD_OUT_TEMPLATES[0].format(s=_with_article(things[6])) + f" {fifth}",
        ]
    return [
        first,
        f"a photo of {second}",
        f"a picture of {third}",
        HELD_OUT_TEMPLATES[0].format(s=fourth),
        HELD_OUT_TEMPLATES[1].format(s=fifth),
    ]


def alias_prompts(words: Words) -> list[str]:
    """One prompt per alias."""
    if words.kind == "style":
        things = _things_for(words)
        return [f"{_with_article(thing)} in {alias} style" for thing, alias in zip(things, words.aliases, strict=False)]
    return [f"a photo of {_with_article(alias)}" for alias in words.aliases]


def _things_for(style: Words) -> list[str]:
    """The objects, in another order for each style."""
    start = 4 * [words.name for words in CONCEPTS].index(style.name)
    return [OBJECTS[(start + 3 * step) % len(OBJECTS)].name for step in range(len(OBJECTS))]


def concept_set() -> dict:
    """The concept set in the format of `efface.concepts`."""
    rows = [
        {
            "name": words.name,
            "kind": words.kind,
            "phrase": words.phrase,
            "aliases": list(words.aliases),
            "anchor": words.anchor,
            "adjacent": siblings(words.name),
            "retained": "others",
        }
        for words in CONCEPTS
    ]
    return {"name": "miniature", "version": 1, "concepts": rows}


def prompt_table(kept: dict[str, dict[str, str]]) -> str:
    """The prompt set as CSV text; `kept` gives earlier rows by concept for the adversarial columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for words in CONCEPTS:
        row = {"concept_type": words.kind, "concept_name": words.name}
        for axis, prompts in (("direct", direct_prompts(words)), ("indirect", indirect_prompts(words))):
            row |= {f"{axis}_prompt_{number}": prompt for number, prompt in enumerate(prompts, start=1)}
        old = kept.get(words.name, {})
        row |= {column: old.get(column, "") for column in COLUMNS if column.startswith("adversarial")}
        writer.writerow(row)
    return text.getvalue()


def write_concept_files(folder: Path) -> None:
    """Write `miniature.yaml` and `miniature.csv` into the folder of concept data."""
    table = folder / "miniature.csv"
    kept = {}
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            kept = {row["concept_name"]: row for row in csv.DictReader(file)}
    write_atomic(table, prompt_table(kept).encode())
    text = yaml.safe_dump(concept_set(), sort_keys=False, allow_unicode=True, width=110)
    write_atomic(folder / "miniature.yaml", text.encode())
