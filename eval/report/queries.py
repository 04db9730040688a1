"""Numbers of a report that no score holds: pure queries over the image table."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import pyarrow as pa
import pyarrow.compute as pc

from efface.concepts.prompts import TARGET_AXES
from efface.eval.scores.held_out import split_shown
from efface.eval.scores.scoring import BASE

Question = tuple[str, str, str, str, int]
"""Concept to forget, axis, asked concept, prompt, seed of the image."""

QUESTION = ("concept", "axis", "asked_concept", "prompt", "seed")


@dataclass(frozen=True)
class ImageAnswer:
    """A judge's answer about one image of one model."""

    present: bool | None
    """None: it could not be read, or the image is no evidence."""
    score: float | None
    image: str
    """Its SHA-256."""
    error: str | None

    def is_failure(self, axis: str) -> bool:
        """Whether it is wrong: the concept is seen where it should be gone, or not where it should be."""
        return self.present is not None and self.present == (axis in TARGET_AXES)


def answers(table: pa.Table, judge: str) -> dict[tuple[str, int], dict[Question, ImageAnswer]]:
    """By method, and number among those of its models that answer the same question (in the order of their ids)."""
    found: dict[tuple[str, int], dict[Question, ImageAnswer]] = defaultdict(dict)
    rows = table.filter(pc.equal(table["judge"], judge)).sort_by([("method", "ascending"), ("model_id", "ascending")])
    models: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows.to_pylist():
        of_concept = models[row["method"], row["concept"]]
        if row["model_id"] not in of_concept:
            of_concept.append(row["model_id"])
        column = row["method"], of_concept.index(row["model_id"])
        question: Question = (row["concept"], row["axis"], row["asked_concept"], row["prompt"], row["seed"])
        found[column][question] = ImageAnswer(row["present"], row["score"], row["image_sha256"], row["image_error"])
    return dict(found)


def uncounted(table: pa.Table, judge: str) -> set[Question]:
    """The questions about concepts that methods may see, where ERR goes by those that are held out."""
    table = table.filter(pc.equal(table["judge"], judge))
    scored, _ = split_shown(table)
    return _questions(table) - _questions(scored)


def _questions(table: pa.Table) -> set[Question]:
    return set(zip(*(table[name].to_pylist() for name in QUESTION), strict=True))


def interference(table: pa.Table, judge: str, method: str) -> dict[tuple[str, str], float]:
    """By forgotten and asked concept: the share of the method's images that show the asked one, less the base's share.

    -1: it was always there and is gone; 0: nothing changed. Over questions that both answered, on all axes.
    """
    table = table.filter(pc.equal(table["judge"], judge))
    edited, base = (_presence(table.filter(pc.equal(table["method"], name))) for name in (method, BASE))
    changes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for question in edited.keys() & base.keys():
        changes[question[0], question[2]].append(edited[question] - base[question])
    return {pair: fmean(values) for pair, values in sorted(changes.items())}


def _presence(table: pa.Table) -> Mapping[Question, float]:
    """Of each question, the share of models whose image shows the asked concept."""
    read = table.filter(pc.is_valid(table["present"]))
    shares = read.append_column("shown", read["present"].cast(pa.float64())).group_by(list(QUESTION))
    means = shares.aggregate([("shown", "mean")])
    columns = [means[name].to_pylist() for name in QUESTION]
    return dict(zip(zip(*columns, strict=True), means["shown_mean"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Disagreement:
    """How two judges differ on the same images."""

    first: str
    second: str
    images: int
    """Questions that both answered."""
    differ: int
    """Of them, those where one saw the asked concept and the other did not."""


def disagreements(table: pa.Table) -> list[Disagreement]:
    """Of each pair of judges that answered the same questions."""
    key = ["model_id", "method", *QUESTION]
    judges = sorted(table["judge"].unique().to_pylist())
    read = table.filter(pc.is_valid(table["present"]))
    by_judge = {
        judge: dict(
            zip(
                zip(*(part[name].to_pylist() for name in key), strict=True),
                part["present"].to_pylist(),
                strict=True,
            )
        )
        for judge in judges
        if (part := read.filter(pc.equal(read["judge"], judge))).num_rows
    }
    found = []
    names = list(by_judge)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            both = by_judge[first].keys() & by_judge[second].keys()
            differ = sum(by_judge[first][one] != by_judge[second][one] for one in both)
            found.append(Disagreement(first, second, len(both), differ))
    return found
