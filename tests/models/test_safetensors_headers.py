"""Headers of safetensors files: read as they are, or refused before anything is allocated for what they promise."""

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from efface.errors import UserError
from efface.models.files.safetensors_headers import LONGEST_HEADER, Entry, read_header

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(file: Path, header: Any, data: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def test_tensors_are_where_the_library_wrote_them(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3]], dtype=torch.int64)}, file, {"format": "pt"})
    data = file.read_bytes()
    found = {entry.name: (entry.dtype, entry.shape, data[entry.start : entry.end]) for entry in read_header(file)}
    assert found == {"b": ("F32", (2,), struct.pack("<2f", 1, 2)), "a": ("I64", (1, 1), struct.pack("<q", 3))}


def test_no_tensors_at_all_are_a_whole_file(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "x", {}, b"")) == []


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    length = len(json.dumps({"x": F32}))
    assert read_header(write(tmp_path / "x", {"x": F32})) == [Entry("x", "F32", (2,), 8 + length, 16 + length)]


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b"\xff\xff",
        b"{}" + b"[" * 100_000,
        b'{"a":' * 100_000,
        {"x": []},
        {"x": {**F32, "dtype": "F33"}},
        {"x": {**F32, "dtype": ["F32"]}},
        {"x": {**F32, "shape": [3]}},
        {"x": {**F32, "shape": [-2]}},
        {"x": {**F32, "shape": [2.0]}},
        {"x": {**F32, "shape": [2**62, 2**62]}},
        {"x": {**F32, "shape": [1] * 100 + [2]}},
        {"x": {**F32, "data_offsets": [8, 0]}},
        {"x": {**F32, "data_offsets": [-8, 0]}},
        {"x": {**F32, "data_offsets": [0, 16], "shape": [4]}},
        {"x": {**F32, "data_offsets": [0, 4], "shape": [1]}},
        {"x": F32, "y": F32},
        {"y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    ],
)
def test_a_lying_header_is_refused(header: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x: not a whole safetensors file"):
        read_header(write(tmp_path / "x", header))


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    entry = json.dumps(F32)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_header(write(tmp_path / "x", f'{{"x": {entry}, "x": {entry}}}'.encode()))


@pytest.mark.parametrize("length", [0, 1, 10**6, LONGEST_HEADER + 1, 2**40, 2**64 - 1])
def test_the_length_of_the_header_is_not_believed(length: int, tmp_path: Path) -> None:
    """Not even where the file is as long as that: it has holes, and takes no space on the disk."""
    file = tmp_path / "x"
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", length) + b"{}")
        handle.truncate(min(length, 2**32) + 8 if length > LONGEST_HEADER else 10)
    tracemalloc.start()
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_header(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_file_that_is_not_there_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x: cannot be read \(No such file or directory\)"):
        read_header(tmp_path / "x")
