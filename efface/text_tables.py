"""Tables as text for a terminal, in which text of others stays text."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from rich import box
from rich.table import Column, Table

from efface.text import rich_text


def name_column(head: str, width: int | None = None) -> Column:
    """A column of names, folded at `width` characters."""
    return Column(head, overflow="fold", max_width=width)


def number_columns(*heads: str) -> list[Column]:
    """Columns of numbers, which stay on one line."""
    return [Column(head, justify="right", no_wrap=True) for head in heads]


def text_table(
    columns: Sequence[Column],
    rows: Iterable[Iterable[object]],
    styles: Iterable[str | None] = (),
    **look: Any,
) -> Table:
    """A table for a terminal; a cell that is None is empty, a list is joined by commas.

    styles: of each row, none where there are fewer; look: of the table, as rich takes it.
    """
    table = Table(*columns, **{"box": box.SIMPLE_HEAD, "padding": 0, **look})
    for row, style in zip_longest(rows, styles):
        table.add_row(*(rich_text(_cell(value)) for value in row), style=style)
    return table


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
