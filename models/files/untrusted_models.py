"""A folder of a transformers model that came from anywhere, looked at before transformers reads it.

Such a folder is data: a judge or an encoder of a stranger runs no code of its own, asks nothing on a terminal that
nobody sees, sends to no other model, and fills no memory with its configs.
"""

import json
import re
import struct
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.models.files.safetensors_headers import read_header
from efface.models.files.untrusted_configs import config_error, entries
from efface.plain_files import open_plain, read_plain

CONFIG_BYTES = 8 * 2**20
"""Of a config. The largest known ones list 21,000 labels in 2 MB."""
VOCABULARY_BYTES = 64 * 2**20
"""Of a vocabulary, and of the header of a safetensors file."""
DEPTH = 64
"""Lists and mappings within one another."""

VOCABULARIES = ("vocab.json", "tokenizer.json", "added_tokens.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
CODE = ("auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_generate", "_class_name")
"""Keys by which transformers or diffusers find code outside themselves."""
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Keys that name code on the hub where their value has a slash."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def check_model_files(folder: Path, source: str) -> None:
    """Raises UserError where the folder names code, another model or pickles, or holds JSON too large or too deep.

    source: what the user calls it.
    """
    if not folder.is_dir():
        raise UserError(f"{source}: is a file, should be the folder of a transformers model")
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{source}: is an adapter of another model, should be a whole one: merge them and save that")
    weights = sorted(folder.glob("*.safetensors"))
    pickle = next((file for file in sorted(folder.iterdir()) if file.suffix in PICKLES), None)
    if pickle and not weights:
        raise UserError(
            f"{source}: has its weights in {pickle.name}, which could run code when read; should have model.safetensors"
        )
    tensors = sum(_count_tensors(file, source) for file in weights)
    for file in sorted(folder.glob("*.json")):
        _check_json(file, source, tensors)


def check_whole_model(folder: Path, source: str) -> None:
    """Raises UserError as `check_model_files` does, and where the folder lacks a config or weights."""
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{source}: has no config.json, should be the folder of a transformers model")
    check_model_files(folder, source)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{source}: has no weights, should have model.safetensors")


def _check_json(file: Path, source: str, tensors: int) -> None:
    vocabulary = file.name in VOCABULARIES
    limit = VOCABULARY_BYTES if vocabulary else CONFIG_BYTES
    try:
        data = read_plain(file, limit)
    except OSError as error:
        raise UserError(f"{source}: {file.name} cannot be read ({error.strerror})") from None
    if _too_deep(data):
        raise UserError(f"{source}: {file.name} is nested too deeply, more than {DEPTH} lists or mappings")
    if vocabulary:
        return
    try:
        content = json.loads(data)
    except ValueError:
        raise UserError(f"{source}: {file.name} is not valid JSON") from None
    for key, value in entries(content):
        if key in CODE or (key in KERNELS and "/" in str(value)):
            raise UserError(
                f"{source}: {file.name} names code of its own ('{key}'), which is never run; should be a model that "
                "transformers itself knows"
            )
    if fault := config_error(file.name, content, tensors):
        raise UserError(f"{source}: {file.name} {fault}")
    if file.name.endswith(".index.json"):
        _check_index(content, file, source)


def _check_index(content: Any, file: Path, source: str) -> None:
    parts = content.get("weight_map") if isinstance(content, dict) else None
    names = parts.values() if isinstance(parts, dict) else [None]
    wrong = next((n for n in names if not (isinstance(n, str) and re.fullmatch(r"[\w.-]+\.safetensors", n))), "")
    if wrong != "":
        raise UserError(f"{source}: {file.name} finds weights in {wrong!r}, should name safetensors files beside it")


def _count_tensors(file: Path, source: str) -> int:
    """Of a safetensors file, whose header has the length that its first eight bytes tell."""
    try:
        with open_plain(file) as handle:
            first = handle.read(8)
    except OSError as error:
        raise UserError(f"{source}: {file.name} cannot be read ({error.strerror})") from None
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 0 < length <= min(VOCABULARY_BYTES, file.stat().st_size - 8):
        raise UserError(f"{source}: {file.name} is not a whole safetensors file")
    try:
        return len(read_header(file))
    except UserError:
        raise UserError(f"{source}: {file.name} is not a whole safetensors file") from None


def _too_deep(data: bytes) -> bool:
    """Whether JSON is nested deeper than `DEPTH`, by its brackets outside strings: nothing is parsed for it."""
    depth = 0
    for bracket in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEPTH:
            return True
    return False
