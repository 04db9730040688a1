"""The JSON configs of a base, read with limits: they come from strangers, and shape what is built."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.plain_files import read_plain

CONFIGS = {
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json",
    "unet": "config.json",
    "vae": "config.json",
}
"""The file name of each component's config."""
LARGEST = 2**20
DEEPEST = 16
# Who wrote the file, with what, from where, and the precision it was kept in: the model is the same, and fp32.
OF_THE_FILE = ("_diffusers_version", "_name_or_path", "dtype", "torch_dtype", "transformers_version")


def read_json(file: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError where there is none, or one too large or too deep to be a config."""
    try:
        if not file.is_file():
            raise UserError(f"{file}: no such file; a base is a diffusers folder of a Stable Diffusion, or one file")
        data = read_plain(file, largest)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UserError(f"{file}: is larger than {largest >> 10} KiB, so it is no config") from None
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    try:
        found = json.loads(data)
    except ValueError:
        raise UserError(f"{file}: not valid JSON") from None
    except RecursionError:
        raise UserError(f"{file}: nested too deeply to be a config") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds a {type(found).__name__}, should be a mapping of keys to values")
    if _depth(found) > DEEPEST:
        raise UserError(f"{file}: nested too deeply to be a config")
    return found


def canonical(config: Mapping[str, Any]) -> bytes:
    """The config as bytes that are the same however it is formatted, and whoever wrote the file."""
    kept = {key: value for key, value in config.items() if key not in OF_THE_FILE}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return deepest
