"""Tables and pictures as a notebook shows them; texts of others stay text."""

from collections.abc import Iterable, Sequence
from html import escape

from efface.text import shown

MAX_WIDTH = 900
"""Pixels of a picture, either way."""


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under a header, which is left out where it is empty."""
    head = "".join(f"<th>{escape(shown(name))}</th>" for name in header)
    lines = ("".join(f"<td>{escape(shown(str(cell)))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{f'<tr>{head}</tr>' if any(header) else ''}{body}</table>"


def html_image(picture: bytes, name: str) -> str:
    """A picture inside the page, small enough for a notebook that is kept under version control."""
    import base64
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((MAX_WIDTH, MAX_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=60)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(shown(name))}" src="data:image/webp;base64,{data}">'
