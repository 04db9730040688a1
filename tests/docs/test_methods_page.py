"""The table of all methods in `docs/methods.md` says what the code says: names, strategies, passes of the UNet."""

import re
from pathlib import Path

import pytest

from efface.models.base import read_base
from efface.models.recipe import Recipe
from efface.models.shapes import ModelShapes, model_shapes
from efface.train.composed_method import ComposedMethod
from efface.train.hook_method import HookMethod
from efface.train.method import GradientMethod, get_method, method_names, parse_config

PAGE = Path(__file__).parents[2] / "docs/methods.md"
COMPARISON = PAGE.with_name("comparison.md")
HEADER = "| method | paper |"


def rows() -> dict[str, list[str]]:
    """The cells of the first table by method."""
    lines = PAGE.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(HEADER)) + 2
    found = {}
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found |= dict.fromkeys(re.findall(r"`([\w-]+)`", cells[0]), cells)
    return found


@pytest.fixture(scope="module")
def shapes() -> ModelShapes:
    return model_shapes(read_base("sd-v1-4-random"))


def test_every_method_has_a_row_and_every_row_eight_cells() -> None:
    assert sorted(rows()) == method_names()
    assert {len(cells) for cells in rows().values()} == {8}


@pytest.mark.parametrize("name", method_names())
def test_its_strategies_are_the_methods(name: str) -> None:
    said = rows()[name][5].partition(";")[0]  # after it comes why the others are missing
    expected = {"single", "multi", "continual"} if said == "all three" else set(said.split(", "))
    assert get_method(name).strategies == expected


@pytest.mark.parametrize("name", [name for name in method_names() if not issubclass(get_method(name), ComposedMethod)])
def test_its_passes_are_what_it_states(name: str, shapes: ModelShapes) -> None:
    method = get_method(name)(parse_config(name, {}))
    said = rows()[name][6]
    if isinstance(method, HookMethod):
        assert said == f"{method.image_passes} a step"
    elif isinstance(method, GradientMethod):
        cost = method.cost(shapes)
        batches = method.config.gradient_accumulation_steps * (cost.trained_rows + cost.mean_frozen_rows)
        parts = [method.steps * (batches + cost.mean_search_rows)]
        if cost.images and cost.images.per_concept:
            parts.append(cost.images.per_concept * passes(cost.images.recipe))
        assert [float(part) for part in said.split(" + ")] == pytest.approx([part / 1000 for part in parts], rel=0.005)
    else:
        assert said == "0"


def passes(recipe: Recipe) -> int:
    """Of one image."""
    return recipe.steps * (2 if recipe.guidance_scale > 1 else 1)


def test_the_comparison_with_other_tools_counts_the_methods_that_there_are() -> None:
    (line,) = (line for line in COMPARISON.read_text().splitlines() if line.startswith("| **efface** |"))
    assert int(line.split("|")[2]) == len(method_names())
