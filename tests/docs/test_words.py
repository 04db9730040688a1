"""The words that code, messages and docs use: those of the field, and of Ray, Hugging Face and SLURM."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"\b(lay down|laid down|laying down|wish|gang|told|forgive|carry_out|stand_in)\b", re.IGNORECASE)
"""Words that meant something here and nowhere else."""
ALLOWED = re.compile(r"gang[- ]schedul", re.IGNORECASE)
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".sh", ".js", ".css", ".svg", ".csv", ".ipynb"}
FOLDERS = [
    "cluster",
    "concepts",
    "configs",
    "docs",
    "efface",
    "eval",
    "launch",
    "miniature",
    "models",
    "tests",
    "train",
    "benchmarks",
]
FILES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in TEXT and path.name != "log.md" and path != Path(__file__)
)


def test_no_file_has_private_words() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in [*FILES, *ROOT.glob("*.md")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PRIVATE.search(ALLOWED.sub("", line))
    ]
    assert not found, found


@pytest.mark.parametrize("line", ["the GANG waits", "def carry_out(self)", "it is told"])
def test_the_words_are_found(line: str) -> None:
    assert PRIVATE.search(ALLOWED.sub("", line))
    assert len(FILES) > 500
