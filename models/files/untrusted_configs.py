"""What a stranger's configs of a transformers model may say: as much as its weights bear out, and of the right kind.

Each check gives what is wrong as part of a sentence, or None. Nothing is built for it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

LABELS = 2**20
"""The most outputs of a classifier."""
EDGE = 4096
"""Pixels of an edge that a judge reads."""
PIXELS = 2**25
"""Of an image where the processor counts them: those of Qwen-VL say `shortest_edge` and `longest_edge` for it."""
PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")

_LAYERS = re.compile(r"(.*_)?(layers?|depths?|blocks?)")
"""Keys that count parts of a model: `depths`, `num_hidden_layers`, `encoder_layers`."""


def config_error(name: str, content: Any, tensors: int) -> str | None:
    """What is wrong in the config of the file `name`, beside weights of so many tensors; 0: they are not known."""
    if not name.endswith("config.json"):
        return None
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__}, should be a mapping of keys to values"
    if name in PREPROCESSING:
        return _image_error(content)
    return (_model_error(content) or _layers_error(content, tensors)) if name == "config.json" else None


def entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            yield from entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from entries(value)


def _model_error(config: Mapping[str, Any]) -> str | None:
    if not isinstance(config.get("model_type"), str):
        return "names no model_type, as the config of a transformers model does"
    labels = config.get("id2label")
    if labels is not None and not _are_labels(labels):
        return "has an id2label that is no mapping of output numbers to labels"
    count = config.get("num_labels")
    if count is not None and not (isinstance(count, int) and 0 <= count <= LABELS):
        return f"has num_labels {count!r}, should be a number up to {LABELS:,}"
    if (problem := config.get("problem_type")) not in PROBLEMS:
        return f"has the problem_type {problem!r}, should be one of {', '.join(filter(None, PROBLEMS))}"
    return None


def _are_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(
        number.isdecimal() and isinstance(label, str | int) for number, label in value.items()
    )


def _layers_error(config: Mapping[str, Any], tensors: int) -> str | None:
    """A layer has at least one tensor; a config of more layers builds for minutes what no weights will fill."""
    for key, value in entries(config) if tensors else ():
        if not _LAYERS.fullmatch(key):
            continue
        numbers = value if isinstance(value, list) else [value]
        if sum(number for number in numbers if type(number) in (int, float)) > tensors:
            return f"has {key} {str(value)[:60]}, more than the {tensors:,} tensors of the weights"
    return None


def _image_error(config: Mapping[str, Any]) -> str | None:
    for key, value in entries(config):
        if key not in ("size", "crop_size"):
            continue
        sizes = value if isinstance(value, dict) else {"edge": value}
        counts_pixels = {"shortest_edge", "longest_edge"} <= sizes.keys()
        most = PIXELS if counts_pixels else EDGE
        for name, number in sizes.items():
            if isinstance(number, int | float) and not 0 < number <= most:
                return f"has the {key} {name} {number:,}, should be 1 to {most:,}"
    return None
