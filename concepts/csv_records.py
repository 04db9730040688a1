"""The records of a CSV file that came from anywhere: UTF-8 text, cells separated by commas, rows as shown.

The header is row 1, blank rows count, a cell of several lines does not make several rows. What is no such file (a
spreadsheet, UTF-16, another delimiter) is named for what it is.
"""

import csv
import errno
import io
import re
from collections.abc import Iterator
from pathlib import Path

from efface.errors import UserError
from efface.plain_files import read_plain

MAX_BYTES = 64 * 2**20
"""Thousands of times a prompt set: a larger file is something else, and is not read into memory."""

_NO_TEXT = {
    b"PK\x03\x04": "is a spreadsheet or another zip archive",
    b"\xd0\xcf\x11\xe0": "is a spreadsheet of the old Excel",
    b"PAR1": "is a Parquet file",
    b"\x1f\x8b": "is compressed (gzip)",
    b"%PDF": "is a PDF",
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(row, stripped cells) of every record that is not blank, the header first.

    A byte that is no UTF-8 becomes a lone surrogate, see `bad_byte`. Raises UserError where this is no CSV.
    """
    data = _data(path)
    # A bad byte becomes a lone surrogate, which valid UTF-8 never holds: so its cell can be named.
    text = data.decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    header = True
    while True:
        number += 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, row {number}: not valid CSV ({_reason(error, text)})") from None
        if record is None:
            return
        if any(cell.strip() for cell in record):
            if header:
                _check_delimiter(path, number, record)
                header = False
            yield number, [cell.strip() for cell in record]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, stripped text) of every line that is not blank, with bytes as in `read_records`. Raises UserError."""
    text = _data(path).decode("utf-8-sig", errors="surrogateescape")
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def bad_byte(text: str) -> str | None:
    """The first byte of a cell that is no UTF-8, as `0xe9`."""
    found = re.search("[\udc80-\udcff]", text)
    return f"0x{ord(found[0]) - 0xDC00:02x}" if found else None


def _data(path: Path) -> bytes:
    try:
        data = read_plain(path, MAX_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UserError(f"{path}: {error.strerror}, which no table of prompts has") from None
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    for magic, what in _NO_TEXT.items():
        if data.startswith(magic):
            raise UserError(f"{path}: {what}, should be CSV: save it as 'CSV UTF-8, separated by commas'")
    if data.startswith(_UTF_16):
        raise UserError(f"{path}: is UTF-16, not UTF-8 text, save it as 'CSV UTF-8, separated by commas'")
    if re.match(rb"(?:\xef\xbb\xbf)?\s*[\[{]", data):
        raise UserError(f"{path}: is JSON, should be CSV: a header, and one row per concept")
    return data


def _check_delimiter(path: Path, row: int, header: list[str]) -> None:
    first = header[0].strip().casefold()
    if re.fullmatch(r"sep=.?", first):
        raise UserError(f"{path}, row {row}: '{first}' is a line for Excel, leave it out: the header comes first")
    for delimiter, name in _DELIMITERS.items():
        if delimiter in "".join(header).strip():
            raise UserError(f"{path}, row {row}: cells should be separated by commas, not by {name}")


def _reason(error: csv.Error, text: str) -> str:
    if bad_byte(text):
        return "not UTF-8 text"
    if "end of data" in str(error) or "field limit" in str(error):
        return "a quoted cell is not closed"
    return str(error)
