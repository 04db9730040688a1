"""The fingerprint of a base: a hash of its tensors and its tokenizer, read from the files, without torch.

It says the same for a folder and for its copy, and another thing as soon as one weight differs.
"""

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from efface.errors import UserError
from efface.files import content_id, sha256_file, write_json

WEIGHTS = {
    "text_encoder": ("model.safetensors", "model-?????-of-?????.safetensors"),
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-?????-of-?????.safetensors"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-?????-of-?????.safetensors"),
}


def fingerprint(path: str | Path) -> str:
    """SHA-256, 64 hex digits, over the sorted (component, tensor name, dtype, shape, bytes) and the
    tokenizer's files.

    `path` is a diffusers folder (its unet, text_encoder, vae and tokenizer) or one checkpoint file. The
    answer is kept in the cache folder, keyed by the files' paths, sizes and modification times. Raises
    UserError where a file is missing or broken.
    """
    path = Path(path)
    files = _files(path)
    stats = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for _, file in files]
    known = cache_folder() / "fingerprints" / f"{content_id(stats)}.json"
    try:
        return json.loads(known.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = sha256_file(path) if path.suffix == ".ckpt" else _digest(files)
    with suppress(UserError):  # a cache that cannot be written costs time only
        write_json(known, {"fingerprint": digest, "files": stats})
    return digest


def cache_folder() -> Path:
    """Where efface keeps what it can compute again: $EFFACE_CACHE, or ~/.cache/efface."""
    return Path(os.environ.get("EFFACE_CACHE") or Path.home() / ".cache" / "efface")


def weight_files(folder: Path, component: str) -> list[Path]:
    """The safetensors files of one component, whole or in shards; no variant such as fp16. May be empty."""
    whole, shards = WEIGHTS[component]
    one = folder / component / whole
    return [one] if one.is_file() else sorted((folder / component).glob(shards))


def _files(path: Path) -> list[tuple[str, Path]]:
    """(component, file) of everything the fingerprint covers."""
    if path.is_file():
        return [("checkpoint", path)]
    found = []
    for component in WEIGHTS:
        parts = weight_files(path, component)
        if not parts:
            raise UserError(f"{path / component}: holds no {WEIGHTS[component][0]}, which a base needs")
        found += [(component, part) for part in parts]
    tokenizer = sorted(file for file in (path / "tokenizer").glob("*") if file.is_file())
    if not tokenizer:
        raise UserError(f"{path / 'tokenizer'}: holds no tokenizer, which a base needs")
    return found + [("tokenizer", file) for file in tokenizer]


def _digest(files: list[tuple[str, Path]]) -> str:
    entries: list[tuple[str, str, str, str, Path, int, int]] = []
    for component, file in files:
        if component == "tokenizer":
            entries.append((component, file.name, "", "", file, 0, file.stat().st_size))
        else:
            entries += [(component, *entry) for entry in _tensors(file)]
    digest = hashlib.sha256()
    for component, name, dtype, shape, file, start, end in sorted(entries):
        digest.update(json.dumps([component, name, dtype, shape, end - start]).encode())
        if end > start:
            with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                view = memoryview(data)
                digest.update(view[start:end])
                view.release()
    return digest.hexdigest()


def _tensors(file: Path) -> Iterator[tuple[str, str, str, Path, int, int]]:
    """(name, dtype, shape, file, first byte, end) of each tensor: a length, a JSON header, then the data."""
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length)) if length <= size else {}
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            if not 0 <= start <= end <= size:
                raise ValueError
            yield name, entry["dtype"], json.dumps(entry["shape"]), file, start, end
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise UserError(f"{file}: not a whole safetensors file") from None
