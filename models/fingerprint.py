"""The fingerprint of a base: a hash of its tensors, its configs and its tokenizer, read from the files without torch.

It says the same for a folder and for its copy, and another thing as soon as one weight, one setting or one token
differs.
"""

import hashlib
import json
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.files import content_id, local_path, sha256_file, write_json
from efface.models.files.component_configs import canonical, read_json
from efface.models.files.component_files import Parts
from efface.models.files.safetensors_headers import read_header

UNSETTLED = 2.0
"""Seconds. A file changed so shortly before it was read can be changed again without any of its times telling."""


def fingerprint(parts: Parts, seed: int | None = None) -> str:
    """SHA-256, 64 hex digits, over the sorted (part, name, dtype, shape, number of bytes) and the bytes of each.

    The parts are tensors, by the component they lie in, configs as `configs.canonical` gives them, and the tokenizer's
    files; of a pickle it is the whole file, and of weights that are drawn at random the `seed`.

    The answer is kept in the cache folder for as long as no file has changed: not its path, its size, its times, nor
    its inode. Where that cannot be trusted the files are hashed every time. Raises UserError where a
    safetensors file is broken.
    """
    started = time.time()
    stats = [_stat(file) for file in parts.files()]
    known = cache_folder() / "fingerprints" / f"{content_id([stats, seed])}.json"
    settled = all(_is_settled(stat, started) for stat in stats)
    if settled:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(known.read_text())["fingerprint"])
    digest = _digest(parts, seed)
    if settled and stats == [_stat(file) for file in parts.files()]:
        with suppress(OSError, UserError):  # a cache that cannot be written costs time only
            write_json(known, {"fingerprint": digest, "files": stats})
    return digest


def cache_folder() -> Path:
    """Where efface keeps what it can compute again: $EFFACE_CACHE, or ~/.cache/efface.

    Where no home folder is known, it is one in which nothing can be found or kept.
    """
    with suppress(UserError):
        return local_path(os.environ.get("EFFACE_CACHE") or "~/.cache/efface")
    return Path(os.devnull) / "efface"


def _stat(file: Path) -> list[Any]:
    """What changes when a file is replaced; a time of modification alone can be set to anything."""
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _is_settled(stat: list[Any], now: float) -> bool:
    """Whether another content would show in the file's `_stat`.

    Not where it was changed a moment ago (or ahead of this clock), nor on a file system that has no inodes, or times
    of whole seconds: on a mounted object store they are often made up.
    """
    *_, changed, inode = stat
    return bool(inode) and changed % 10**9 != 0 and changed / 10**9 < now - UNSETTLED


def _digest(parts: Parts, seed: int | None) -> str:
    digest = hashlib.sha256()
    for *fields, file, start, end in sorted(_entries(parts, seed)):
        digest.update(json.dumps([*fields, end - start]).encode())
        if isinstance(file, bytes):
            digest.update(file[start:end])
        elif end > start:
            with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                view = memoryview(data)
                digest.update(view[start:end])
                view.release()
    return digest.hexdigest()


def _entries(parts: Parts, seed: int | None) -> Iterator[tuple[str, str, str, str, bytes | Path, int, int]]:
    """(part, name, dtype, shape, bytes or the file that holds them, first byte, end)."""
    for component, file in parts.configs.items():
        config = canonical(read_json(file))
        yield "config", component, "", "", config, 0, len(config)
    for file in parts.tokenizer:
        yield "tokenizer", file.name, "", "", file, 0, file.stat().st_size
    if seed is not None:
        yield "random", f"seed {seed}", "", "", b"", 0, 0
    for component, files in parts.weights.items():
        for file in files:
            if file.suffix == ".ckpt":
                yield component, sha256_file(file), "", "", b"", 0, 0
                continue
            for entry in read_header(file):
                yield component, entry.name, entry.dtype, json.dumps(entry.shape), file, entry.start, entry.end
