"""Runs made up for the tests of the report: two methods and the base on two concepts, with coloured images."""

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
from PIL import Image

from efface.concepts.prompts import AXES, TARGET_AXES
from efface.eval.attacking.attack_transfer import Transferred
from efface.eval.judging.image_table import SCHEMA
from efface.eval.report.reported_run import ReportedModel, RunContent
from efface.eval.scores.leaderboard import leaderboard
from efface.eval.scores.scoring import score_table

METHODS = ("esd", "uce")
CONCEPTS = ("cat", "bus")
JUDGE = "judge"
HOSTILE = "<script>alert('x')</script>\x1b[31m ‮\"&</td>"

MARKUP = "<a href='https://evil.example/x'>cat</a><br><b>x</b>\u202e &amp;"
"""A name that Plotly would take for a link, with a mark that turns what follows it around."""


def rows(seed: int = 0, prompt: str = "prompt") -> list[dict[str, Any]]:
    """Three seeds of each axis; every answer is random, the base's are right. An image is known by its question."""
    generator = random.Random(seed)
    found = []
    for method in ("base", *METHODS):
        for concept in CONCEPTS:
            for axis in AXES:
                asked = concept if axis in TARGET_AXES else "tree"
                for image_seed in range(3):
                    present = True if method == "base" else generator.random() < 0.5
                    name = f"{method} {concept} {axis} {image_seed}"
                    found.append(
                        {
                            "model_id": method if method == "base" else f"{method}-{concept}",
                            "base_id": "b",
                            "method": method,
                            "concept": concept,
                            "axis": axis,
                            "asked_concept": asked,
                            "prompt": f"{prompt} of {axis} for {asked}",
                            "prompt_id": f"{axis}-{asked}",
                            "seed": image_seed,
                            "recipe_id": "r",
                            "judge": JUDGE,
                            "judge_version": "1",
                            "present": present,
                            "score": 0.75 if present else 0.25,
                            "image_sha256": name,
                            "image_error": None,
                        }
                    )
    return found


def run_content(found: list[dict[str, Any]] | None = None, **changes: Any) -> RunContent:
    """A whole run of these rows, as a report is given it."""
    table = pa.Table.from_pylist(found or rows(), schema=SCHEMA)
    scores = {method: score_table(table, method=method) for method in METHODS}
    models = tuple(
        ReportedModel(
            id=f"{method}-{concept}",
            label=method,
            method=method,
            name=f"{method}-{concept}-1",
            concepts=(concept,),
            seed=0,
            config={"steps": 2},
            seconds=1.5,
            device="cpu",
            losses=(2.0, 1.0) if method == "esd" else (),
            changes={"xattn": 0.001},
        )
        for method in METHODS
        for concept in CONCEPTS
    )
    content = RunContent(
        name="made-up",
        path="runs/made-up",
        table=table,
        judge=JUDGE,
        rows=tuple(leaderboard(scores, {}, {"esd": 3.0})),
        scores=scores,
        stages={},
        models=models,
        calibrations=(),
        images=lambda: images(table),
    )
    return replace(content, **changes)


def named_by_a_stranger() -> RunContent:
    """The run, in which the concept `cat` and the method `esd` are called `MARKUP`."""
    found = [{k: MARKUP if k.endswith("concept") and v == "cat" else v for k, v in row.items()} for row in rows()]
    content = run_content(found)
    table = pa.Table.from_pylist(
        [row | {"method": MARKUP if row["method"] == "esd" else row["method"]} for row in found], schema=SCHEMA
    )
    return replace(
        content,
        table=table,
        rows=tuple(replace(row, method=MARKUP) if row.method == "esd" else row for row in content.rows),
        scores={MARKUP if method == "esd" else method: scores for method, scores in content.scores.items()},
        models=tuple(
            replace(model, label=MARKUP, concepts=(MARKUP,)) if model.label == "esd" else model
            for model in content.models
        ),
        transfers=(
            Transferred(attack="gcg", source=MARKUP, method="uce", concept=MARKUP, prompts=1, judged=1, shown=1),
        ),
    )


def images(table: pa.Table) -> Iterator[tuple[str, bytes]]:
    """A picture of one colour for every hash of the table."""
    for number, sha in enumerate(dict.fromkeys(table["image_sha256"].to_pylist())):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (number % 256, 100, 50)).save(buffer, format="PNG")
        yield sha, buffer.getvalue()
