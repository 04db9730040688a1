"""The page on extending efface shows files that the tests run: whole, all of them, and as they are."""

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from efface.eval.attack import ATTACKS
from efface.eval.judge import JUDGES
from efface.eval.metric import METRICS
from efface.launch.launcher import LAUNCHERS
from efface.models.base import base_id, read_base
from efface.models.family import FAMILIES
from efface.train.method import METHODS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "tests" / "examples"
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".yaml", ".toml"))
TESTS = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_page_shows_the_whole_file_as_it_is(file: Path) -> None:
    assert file.read_text() in [text for _, text in BLOCKS]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_test_runs_the_file(file: Path) -> None:
    """By an import from `examples`, or as a file of the folder; then its name is there in quotes."""
    name = rf"""\bexamples\.{file.stem} import|["']{file.stem}({file.suffix})?["']"""
    assert any("examples" in text and re.search(name, text) for text in TESTS)


def test_every_code_block_in_python_or_of_a_base_is_a_file() -> None:
    files = {file.read_text() for file in FILES}
    assert all(text in files for language, text in BLOCKS if language in ("python", "yaml", "toml"))


def test_entry_points_are_of_groups_that_a_registry_reads() -> None:
    groups = {registry.group for registry in (METHODS, JUDGES, ATTACKS, METRICS, LAUNCHERS, FAMILIES)}
    (shown,) = [tomllib.loads(text) for language, text in BLOCKS if language == "toml"]
    for group, entries in shown["project"]["entry-points"].items():
        assert group in groups
        for name, value in entries.items():
            assert EntryPoint(name, value, group).module
    assert groups <= set(re.findall(r"^\|[^|]*\| `(efface\.\w+)` \|", PAGE, re.MULTILINE))


def test_the_example_of_a_base_is_the_miniature_under_another_name() -> None:
    base, miniature = read_base(EXAMPLES / "base.yaml"), read_base("miniature")
    assert base_id(base) == base_id(miniature)
    assert (base.name, base.recipe, base.judge, base.concepts, base.prompts) == (
        "my-drawings",
        *(miniature.recipe, miniature.judge, miniature.concepts, miniature.prompts),
    )
