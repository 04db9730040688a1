"""Tables as CSV, for a spreadsheet or a program."""

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import chain

from efface.text import csv_cell


def csv_table(header: Sequence[str], rows: Iterable[Iterable[object]], line_end: str = "\n") -> str:
    """The text of a CSV, numbers in full; a cell that is None is empty, and none is a formula (see `csv_cell`)."""
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end).writerows(map(csv_cell, row) for row in chain([header], rows))
    return text.getvalue()
