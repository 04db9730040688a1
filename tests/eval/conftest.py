"""What the tests of judging share: a world of three concepts, a recipe of one step, and rows of an image table."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompt_csv import PromptRow
from efface.concepts.prompts import TARGET_AXES, PromptSet, prompt_id
from efface.eval.judge import Verdict
from efface.eval.judging.image_table import SCHEMA
from efface.models.recipe import Recipe


@pytest.fixture(scope="session")
def world() -> ConceptSet:
    return ConceptSet(
        name="world",
        version=1,
        concepts=(
            Concept(name="Cat", kind="animal", phrase="a cat", aliases=("kitty",), adjacent=("Dog",)),
            Concept(name="Tulip", kind="object", phrase="a tulip", adjacent=("Rose",)),
            Concept(name="Van Gogh", kind="style", phrase="a painting by Van Gogh", adjacent=("Tulip",)),
        ),
        neighbours=(
            Concept(name="Dog", kind="animal", phrase="a dog"),
            Concept(name="Rose", kind="object", phrase="a rose"),
        ),
    )


@pytest.fixture(scope="session")
def prompts() -> PromptSet:
    return PromptSet(
        "prompts",
        {
            "Cat": PromptRow(("an image of a cat", "a cat"), ("a pet that purrs",), ("xq pl",)),
            "Tulip": PromptRow(("an image of a tulip",), ("a bulb flower of spring",), ("zz f",)),
            "Van Gogh": PromptRow(("a painting by Van Gogh",), ("swirling yellow stars",), ("vg ow",)),
        },
    )


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe(name="one", scheduler="ddim", steps=1, guidance_scale=1, height=16, width=16, batch_size=4)


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """One row of an image table; what is not given is filled in so that the row is right."""

    def make(axis: str, present: bool | None, concept: str = "Cat", seed: int = 0, **given: Any) -> dict[str, Any]:
        prompt = given.pop("prompt", f"{axis} prompt")
        return {
            "model_id": "m1",
            "base_id": "b",
            "method": "esd",
            "concept": concept,
            "axis": axis,
            "asked_concept": concept if axis in TARGET_AXES else "Dog",
            "prompt": prompt,
            "prompt_id": prompt_id(prompt),
            "seed": seed,
            "recipe_id": "r",
            "judge": "j",
            "judge_version": "v",
            "present": present,
            "score": None if present is None else float(present),
            "image_sha256": "0" * 64,
            "image_error": None,
            "held_out": None,
            **given,
        }

    return make


@pytest.fixture
def table() -> Callable[[Iterable[dict[str, Any]]], pa.Table]:
    return lambda rows: pa.Table.from_pylist(list(rows), schema=SCHEMA)


class StubJudge:
    """Sees what `sees(image, concept)` says; None is an answer that cannot be read."""

    name = "stub"
    version = "1"

    def __init__(self, sees: Callable[[np.ndarray, Concept], bool | None]) -> None:
        self.sees = sees
        self.requested: list[tuple[str, int]] = []

    def check(self, concepts: Iterable[Concept]) -> None:
        pass

    def judge(self, images: np.ndarray, requested: Sequence[Concept]) -> list[Verdict]:
        self.requested += [(concept.name, int(image.sum())) for image, concept in zip(images, requested, strict=True)]
        answers = [self.sees(image, concept) for image, concept in zip(images, requested, strict=True)]
        return [Verdict(a, float("nan") if a is None else (0.9 if a else 0.1)) for a in answers]


@pytest.fixture
def stub_judge() -> type[StubJudge]:
    return StubJudge
