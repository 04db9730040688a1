"""The notebooks of the documentation: executed to the end, small, and in step with the functions that they call."""

import ast
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import efface
from efface.launch.commands.evaluate import EvaluateOptions
from efface.launch.commands.score import ScoreOptions
from efface.launch.commands.unlearn import UnlearnOptions

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 300_000
KEYWORDS = {
    "unlearn": {field.name for field in fields(UnlearnOptions)},
    "evaluate": {field.name for field in fields(EvaluateOptions)},
    "score": {field.name for field in fields(ScoreOptions)},
    "load": {"base", "device", "delta"},
    "pipeline": {"base", "delta", "device"},
}


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_two() -> None:
    assert len(NOTEBOOKS) == 2


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_executed_from_top_to_bottom_without_an_error_and_is_small(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and all(output["output_type"] != "error" for output in outputs)
    assert notebook.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_calls_functions_that_there_are_with_options_that_they_take(notebook: Path) -> None:
    calls = [
        node
        for cell in code_cells(notebook)
        for node in ast.walk(ast.parse("".join(cell["source"])))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "efface"
    ]
    assert calls
    for call in calls:
        assert isinstance(call.func, ast.Attribute) and call.func.attr in efface.API
        assert {keyword.arg for keyword in call.keywords} <= KEYWORDS[call.func.attr]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_executed_anew_every_cell_shows_the_same_kinds_of_output(notebook: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
    client = pytest.importorskip("nbclient", reason="the extra docs is not installed")
    made = nbformat.read(notebook, as_version=4)
    client.NotebookClient(made, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    anew = [cell for cell in made.cells if cell.cell_type == "code"]
    for kept, now in zip(code_cells(notebook), anew, strict=True):
        assert {kind for output in kept["outputs"] for kind in output.get("data", {})} <= {
            kind for output in now.outputs for kind in output.get("data", {})
        }
