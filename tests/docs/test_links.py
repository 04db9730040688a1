"""What the documentation names exists: linked pages, files in backticks, and the commands and options of `efface`."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from efface.launch.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CURRENT = [page for page in PAGES if page.name != "log.md" and page.parent.name != "decisions"]
"""Pages that say how things are; the log and the decisions keep the names of their day."""
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
COMMAND = typer.main.get_command(app)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[str]:
    """Targets of a page's links within the repository, without the fragment."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [target.split("#")[0] for target in found if not re.match(r"[a-z]+:|#", target)]


def named_files(page: Path) -> Iterator[str]:
    """Files and folders in backticks whose path begins with a folder of the repository."""
    for text in re.findall(r"`([\w./-]+)`", page.read_text()):
        folder, slash, _ = text.partition("/")
        if slash and folder in FOLDERS and folder != "runs":
            yield text


def code(page: Path) -> list[str]:
    """Lines of code blocks, and code in backticks."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:sh|console)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + indented
    without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + [" ".join(inline.split()) for inline in re.findall(r"`([^`]+)`", without_blocks)]


def commands(page: Path) -> list[str]:
    """The code that begins with `efface `."""
    starts = (re.search(r"(?:^|-- |\$ |=1 )(efface [a-z-].*)", line) for line in code(page))
    return [match[1] for match in starts if match]


def error_of(command: str) -> str | None:
    """Why a command would not be understood: an unknown verb or option, or an option without its value."""
    words = shlex.split(re.split(r" [>|] | {3,}\(", command)[0], comments=True)[1:]
    verb: Any = COMMAND
    while words and not words[0].startswith("-") and hasattr(verb, "commands"):
        name = words[0]
        if name == "NAME":
            return None
        try:
            found = verb.get_command(typer.Context(verb), name)
        except Exception as error:
            return str(error)
        if not found:
            return f"no command {name}"
        verb, words = found, words[1:]
    options = {flag: option for option in verb.params for flag in option.opts if flag.startswith("-")}
    options |= dict.fromkeys(("-h", "--help"))
    while words:
        word, *words = words
        if word.startswith("-"):
            if word not in options:
                return f"no option {word}"
            if options[word] and not options[word].is_flag:
                if not words:
                    return f"{word} lacks its value"
                words = words[1:]
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_file_in_backticks_exists(page: Path) -> None:
    assert [name for name in named_files(page) if "NAME" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_command_is_one_that_efface_has(page: Path) -> None:
    found = {command: error_of(command) for command in commands(page)}
    assert {command: error for command, error in found.items() if error} == {}


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_benchmark_and_make_target_is_there_with_its_options(page: Path) -> None:
    text = page.read_text()
    for module, options in re.findall(r"python -m (benchmarks[\w.]+)([^`\n(#>|]*)", text):
        path = ROOT / module.replace(".", "/")
        source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        source += (
            (ROOT / "benchmarks" / "on_device.py").read_text()
            if re.search(r"on_device import [(\s]*arguments\b", source)
            else ""
        )
        assert [flag for flag in re.findall(r"--[\w-]+", options) if f'"{flag}"' not in source] == [], module
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)) <= set(targets)


def test_pages_with_commands_are_seen() -> None:
    assert len(commands(ROOT / "README.md")) >= 5
    assert len(commands(ROOT / "docs" / "commands.md")) > 20
    assert "efface gc RUN" in commands(ROOT / "docs" / "campaigns.md")
    assert "efface run campaign.yaml --out s3://bucket/run" in commands(ROOT / "docs" / "launch" / "ray.md")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("efface run demo --workers 0", None),
        ("efface rum demo", "no command rum"),
        ("efface run demo --worker 0", "no option --worker"),
        ("efface run demo --out", "--out lacks its value"),
        ("efface submit slurm demo --style shared", None),
        ("efface submit slurm demo --follow", "no option --follow"),
        ("efface submit slrum demo", "unknown launcher 'slrum': did you mean 'slurm'?"),
    ],
)
def test_a_command_that_is_wrong_is_noticed(command: str, error: str | None) -> None:
    assert error_of(command) == error


def test_the_index_lists_every_decision_once() -> None:
    folder = ROOT / "docs" / "decisions"
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert links(folder / "README.md") == files
    assert [name[:4] for name in files] == [f"{number:04}" for number in range(1, len(files) + 1)]


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_no_page_has_pip_look_for_efface_on_an_index_that_has_none(page: Path) -> None:
    """Its extras may be named where it is installed already: pip then asks for what they need alone."""
    requested = re.findall(r"pip install[^`\n]*?(?<![\w./])efface(?![\w\[./-])", page.read_text())
    assert requested == []
