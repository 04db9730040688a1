"""Published results on the challenge's concepts, as versioned data, to be shown beside one's own.

`genmu-2025.csv`: the challenge's site (github.com/shreyanshhub/GENMU-, evaluation and leaderboard): the "ERR" of each
concept (headed "ERB" at other times) of four baselines and of two teams. Judge and images are not published.
`maproute-plus-plus.csv`: MapRoute++ (arXiv 2608.13478): five axes of one method; the judge is of the LLaVA family.

Judge and recipe differ from one's own and from each other: numbers to be set side by side, not to be compared. Names
are spelled as in the source; the concept set genmu-2025 knows them as aliases.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from efface.concepts.concept import load_concept_set
from efface.errors import UserError

CAUTION = "Published with another judge, other images and another recipe: to be seen beside, not to be compared."
_AXES = {"fgt": "forget", "ret": "retain", "adj": "adjacent", "ind": "indirect", "adv": "adversarial"}


@dataclass(frozen=True)
class PublishedScore:
    """A published result for one concept."""

    source: str
    method: str
    concept: str
    """As the concept set genmu-2025 calls it."""
    err: float
    axes: dict[str, float]
    """Empty where they were not published."""


def published_for(concepts: Iterable[str]) -> list[PublishedScore]:
    """What was published on these concepts (names or aliases of genmu-2025), in their order."""
    known = load_concept_set("genmu-2025")
    wanted: dict[str, None] = {}
    for name in concepts:
        try:
            wanted[known.find(name).name] = None
        except UserError:  # a concept of another set
            continue
    return [result for name in wanted for result in _all() if result.concept == name]


@cache
def _all() -> tuple[PublishedScore, ...]:
    known = load_concept_set("genmu-2025")
    challenge = (
        PublishedScore("Genμ 2025", row["method"], known.find(row["concept"]).name, float(row["err"]), {})
        for row in _rows("genmu-2025.csv")
    )
    map_route = (
        PublishedScore(
            "arXiv 2608.13478",
            "MapRoute++",
            known.find(row["concept"]).name,
            float(row["err"]),
            {axis: float(row[column]) for column, axis in _AXES.items()},
        )
        for row in _rows("maproute-plus-plus.csv")
    )
    return (*challenge, *map_route)


def _rows(name: str) -> list[dict[str, str]]:
    with (Path(__file__).parent / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
