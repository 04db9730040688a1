"""Tables and lines that commands print, in which text of others stays text."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from efface.text import rich_text, shown

if TYPE_CHECKING:
    from rich.console import Console

LOG_WIDTH = 120
"""Columns of text where there is no terminal that has a width."""


def console(stream: TextIO | None = None) -> "Console":
    """A console on today's stdout, or another stream: a worker in this process captures what is printed while it
    works."""
    from rich.console import Console

    stream = stream or sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else LOG_WIDTH)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under a header; a cell that is None is empty, a list is joined by commas."""
    from efface.text_tables import name_column, text_table

    columns = [name_column(title) for title in header]
    console().print(text_table(columns, rows, box=None, padding=(0, 1), pad_edge=False, show_edge=False))


def print_line(text: str) -> None:
    """One line, however wide the terminal is, with nothing in it that acts on the terminal."""
    print(shown(text))


def print_warnings(warnings: Iterable[str]) -> None:
    """What should be known before results are believed, a line each."""
    from rich.text import Text

    for warning in warnings:
        console().print(Text.assemble(("note", "yellow"), ": ", rich_text(warning)), soft_wrap=True)
