"""Tables as a notebook shows them; texts of others stay text."""

from collections.abc import Iterable, Sequence
from html import escape

from efface.text import shown


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under a header, which is left out where it is empty."""
    head = "".join(f"<th>{escape(shown(name))}</th>" for name in header)
    lines = ("".join(f"<td>{escape(shown(str(cell)))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{f'<tr>{head}</tr>' if any(header) else ''}{body}</table>"
