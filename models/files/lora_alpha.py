"""The alpha of a LoRA in the names of peft and diffusers, which keep it beside the tensors and not among them.

peft writes `adapter_config.json` into the adapter's folder; diffusers puts the same settings, each with its component
before it (`unet.lora_alpha`), as JSON into the metadata of the safetensors file. A layer's change is
alpha / rank * up @ down, or alpha / sqrt(rank) * up @ down with `use_rslora` (Kalajdzievski, arXiv 2312.03732).
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from efface.errors import UserError
from efface.plain_files import read_plain

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
COMPONENTS = ("unet", "text_encoder")

Settings = Mapping[str, Any]


def read_settings(path: Path) -> dict[str, Settings]:
    """By component, what is said beside the tensors of the file `path`; empty where nothing is.

    Raises UserError where it cannot be read.
    """
    beside = path.parent / CONFIG
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            noted = (file.metadata() or {}).get(METADATA)
        if noted is not None:
            found = _object(noted, f"{path}, {METADATA}")
            return {root: own for root in COMPONENTS if (own := _without_prefix(found, f"{root}."))}
    if beside.is_file():
        try:
            text = read_plain(beside).decode()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{beside}: cannot be read") from None
        return dict.fromkeys(COMPONENTS, _object(text, str(beside)))
    return {}


def alpha_of(settings: Settings, module: str, rank: int, path: Path) -> float:
    """The alpha of a module, by its full name, whose change is alpha / rank * up @ down.

    Raises UserError where the settings name none.
    """
    _, _, layer = module.partition(".")
    patterns = settings.get("alpha_pattern") or {}
    alpha = settings.get("lora_alpha")
    if isinstance(patterns, dict):
        alpha = next((value for pattern, value in patterns.items() if _matches(pattern, layer)), alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"{path}: the settings of the LoRA of '{module}' say lora_alpha {alpha!r}, should be a number")
    return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)


def _matches(pattern: str, layer: str) -> bool:
    """As peft reads a key of `alpha_pattern`: a regular expression for the end of a name."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", layer) is not None
    except re.error:
        return False


def _without_prefix(settings: Settings, prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{where}: is no JSON object, should hold the settings of a LoRA")
    return found
