"""The tokenizer of a base, and with it what its text encoder reads of a prompt; no weights are needed, nor torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet
from efface.concepts.text_window import Reading, TextWindow, check_concepts, check_prompts
from efface.errors import UserError
from efface.models.base import DEFAULT_ARCHITECTURE, RANDOM, BaseSpec, architecture
from efface.models.files.model_files import NotCached, locate
from efface.plain_files import read_plain

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

FILES = ("tokenizer/*", "text_encoder/config.json")
"""Of a base on the hub, what is needed to read prompts as it does."""


def text_window(spec: BaseSpec) -> TextWindow | None:
    """What the base's text encoder reads of a prompt; None where no tokenizer of it is on this machine.

    A base that is not fetched yet has the one of its architecture, if its YAML names one. Raises UserError where the
    tokenizer cannot be loaded.
    """
    folder = _configs(spec)
    if folder is None:
        return None
    tokenizer = load_tokenizer(folder)
    special = set(tokenizer.all_special_ids)
    positions = min(tokenizer.model_max_length, _positions(folder) or tokenizer.model_max_length)

    def read(texts: Sequence[str]) -> list[Reading]:
        found = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [
            Reading(
                tokens=tuple(id for id in ids if id not in special),
                length=len(ids),
                kept=tokenizer.decode(ids[:size], skip_special_tokens=True),
            )
            for ids in found
        ]

    size = positions - tokenizer.num_special_tokens_to_add()
    return TextWindow(spec.name, size, read)


def check_texts(
    spec: BaseSpec, concepts: ConceptSet, prompts: PromptSet | None = None, texts: Collection[str] = ()
) -> tuple[str, ...]:
    """A line for what the base's text encoder does not read of the `texts` of a prompt set.

    Raises UserError for a phrase, an anchor or a prompt that says nothing to it.
    """
    window = text_window(spec)
    if window is None:
        unknown = f"base '{spec.name}' is not fetched yet, nor is its tokenizer"
        return (f"{unknown}: whether it reads every prompt to its end will be known when the run starts",)
    check_concepts(concepts, window)
    return check_prompts(prompts, concepts, window, texts) if prompts else ()


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a diffusers folder, or of a folder of configs. Raises UserError where it cannot be loaded."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{folder / 'tokenizer'}: cannot be loaded as a CLIPTokenizer ({reason})") from None


def _configs(spec: BaseSpec) -> Path | None:
    """The folder that holds the tokenizer: the base's own, or that of its architecture."""
    if spec.source.startswith(RANDOM):
        return architecture(spec.source.removeprefix(RANDOM))
    try:
        path = locate(spec.source, FILES, fetch=False)
    except NotCached:
        return architecture(spec.architecture) if spec.architecture else None
    return architecture(spec.architecture or DEFAULT_ARCHITECTURE) if path.is_file() else path


def _positions(folder: Path) -> int | None:
    """Positions that the text encoder has; None where its config does not say."""
    try:
        config = json.loads(read_plain(folder / "text_encoder" / "config.json"))
        return int(config["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
