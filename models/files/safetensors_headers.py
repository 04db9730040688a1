"""What a safetensors file says of itself, read without torch: a length, a JSON header of that length, then the data.

https://huggingface.co/docs/safetensors. Nothing is believed before it is checked against the file's size.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.plain_files import open_plain

LONGEST_HEADER = 2**24
"""Bytes. The format allows six times as much; a Stable Diffusion in one file, averages and all, has 0.4 MB."""
MOST_DIMENSIONS = 8
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}


@dataclass(frozen=True, order=True)
class Entry:
    """A tensor in a file: `start` and `end` are its first byte and the one after its last."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(file: Path) -> list[Entry]:
    """The tensors of a safetensors file, in the order of their data.

    Raises UserError where it is not a whole one: a header longer than the file or than any model needs, nested
    without end or with a name twice, tensors that overlap, leave gaps, or have not the bytes of their shape.
    """
    try:
        size = file.stat().st_size
        with open_plain(file) as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError
            header = json.loads(handle.read(length), object_pairs_hook=_unique)
        for text in _texts(header.pop("__metadata__", None), header):
            text.encode()  # which half of a pair of surrogates cannot be
        found = [_entry(name, fields, 8 + length) for name, fields in header.items()]
        return _without_gaps(found, 8 + length, size)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        raise UserError(f"{file}: not a whole safetensors file") from None


def _texts(notes: Mapping[str, str] | None, header: Mapping[str, Any]) -> list[str]:
    """All names, and the notes about the whole file, if any; texts, or an AttributeError at the next step."""
    return [*header] if notes is None else [*header, *notes.keys(), *notes.values()]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def _entry(name: str, fields: Mapping[str, Any], data: int) -> Entry:
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not (isinstance(shape, list) and isinstance(offsets, list)) or len(fields) > 3:
        raise ValueError
    start, end = offsets
    numbers = [*shape, start, end]
    if len(shape) > MOST_DIMENSIONS or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError
    if BITS[fields["dtype"]] * prod(shape) != 8 * (end - start):
        raise ValueError
    return Entry(name, fields["dtype"], tuple(shape), data + start, data + end)


def _without_gaps(found: list[Entry], data: int, size: int) -> list[Entry]:
    ordered = sorted(found, key=lambda entry: (entry.start, entry.end))
    for before, entry in zip([data, *(entry.end for entry in ordered)], ordered, strict=False):
        if entry.start != before:
            raise ValueError
    if (ordered[-1].end if ordered else data) != size:
        raise ValueError
    return ordered
