"""The site's pages that are made from the code: nothing of the command line or of a schema is missing from them."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efface.launch.cli import PANELS, app

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

import command_pages  # noqa: E402
import field_pages  # noqa: E402
import site_hooks  # noqa: E402


@pytest.fixture(scope="module")
def page() -> str:
    return command_pages.commands_page()


def commands() -> Iterator[tuple[str, Any]]:
    import typer

    group: Any = typer.main.get_command(app)
    yield from group.commands.items()


def test_every_command_is_there_with_every_option(page: str) -> None:
    sections = {part.partition("\n")[0]: part for part in page.split("\n### ")}
    names = [name for names in PANELS.values() for name in names]
    assert {name for name, _ in commands()} == set(names)
    for name, command in commands():
        section = sections[f"efface {name}"]
        for option in command.params:
            flags = [flag for flag in option.opts if flag.startswith("-") and flag != "--help" and flag != "-h"]
            assert [flag for flag in flags if f"`{flag}`" not in section] == [], name
    assert "`--follow`" in sections["efface submit ray"]


@pytest.mark.parametrize("name", field_pages.FIELD_PAGES)
def test_every_field_of_every_config_is_there_with_what_it_is_for(name: str) -> None:
    text = field_pages.fields_page(name)
    for heading, (_, model) in field_pages.sections(name).items():
        section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
        rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", section, re.MULTILINE)
        assert [field for field, _ in rows] == list(model.model_fields), heading
        assert [field for field, about in rows if not about.strip()] == [], heading


def test_links_out_of_the_pages_become_names() -> None:
    text = "[in full](../benchmarks/results/coverage.json), [scores](scores.md#intervals), [clusters](launch/)"
    expected = "in full (`benchmarks/results/coverage.json`), [scores](scores.md#intervals), clusters (`docs/launch`)"
    assert site_hooks.without_outer_links(text, ROOT / "docs") == expected
    assert "](images/report.png)" in site_hooks.front_page() and "](scores.md)" in site_hooks.front_page()


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    made = {f"reference/{name}.md" for name in field_pages.FIELD_PAGES} | {"reference/commands.md", "index.md"}
    missing = {name for name in written | made if not re.search(rf": {re.escape(name)}$", menu, re.MULTILINE)}
    assert {name for name in missing if not name.startswith("decisions/0")} == set()
