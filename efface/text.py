"""Text of strangers, made harmless for where it goes: a terminal, JSON on a terminal, a spreadsheet.

Prompts, labels and names are data: none of their characters may move a cursor, colour a table, or become a formula.
"""

import json
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of characters that act on what shows them: controls, marks of direction, lone surrogates, ends
of lines and paragraphs."""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a cell begins with that a spreadsheet runs (OWASP, "CSV injection")."""


def shown(text: str) -> str:
    """`text` on one line, unseen characters written out as Python would: an escape as `\\x1b`, a new line as `\\n`."""
    if text.isprintable():
        return text
    return "".join(_written_out(c) if unicodedata.category(c) in UNSEEN else c for c in text)


def count_of(count: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shown_in(value: Any) -> Any:
    """`value`, as JSON has it, with every text in it `shown`; keys stay as they are."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {key: shown_in(item) for key, item in value.items()}
    return [shown_in(item) for item in value] if isinstance(value, list | tuple) else value


def rich_text(text: str, style: str = "") -> "Text":
    """`shown(text)` for rich: its brackets are no markup, its `:names:` no emoji."""
    from rich.text import Text

    return Text(shown(text), style)


def json_text(value: Any, indent: int | None = 2) -> str:
    """`value` as JSON that a terminal can show: letters as they are, unseen characters as `\\uXXXX`."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "\n".join(_without_unseen(line) for line in text.split("\n"))


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a text that begins like one has an apostrophe before it.

    Numbers stay as they are. `csv_text` takes the apostrophe away again.
    """
    return f"'{value}" if isinstance(value, str) and value.lstrip("'").startswith(FORMULA) else value


def csv_text(cell: str) -> str:
    """The text of a cell that `csv_cell` may have written."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _without_unseen(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(json.dumps(c)[1:-1] if unicodedata.category(c) in UNSEEN else c for c in line)
