"""Concepts as keys: the token embeddings that a closed form edits, those that it keeps, and those of anything else.

A key is one token of one prompt after the text encoder, (d,). Which tokens of a prompt are taken is the config's:

- `last-subject`: the last token of the prompt's own words;
- `all`: from there to the end of the text window, concept and guide aligned at their last words;
- `whole`: every token but the first, which all prompts share, one beside the other;
- `mean`: one key, the mean of those of `all`, for text encoders that say what a prompt is about after its last word.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import Field, field_validator
from torch import Tensor

from efface.concepts.concept import Concept, Kind
from efface.errors import StorageError
from efface.files import content_id, write_atomic
from efface.models.base import Base
from efface.models.text.text_encoding import encode_prompts, last_subject_token
from efface.train.data.captions import has_one_place
from efface.train.method import MethodConfig, UnlearningTask

Tokens = Literal["last-subject", "all", "whole", "mean"]


class EditConfig(MethodConfig):
    """Which prompts a closed form edits, what each is mapped to, and which it keeps."""

    guide: str | None = Field(
        None, description="prompt the concepts are mapped to; null: each concept's anchor; authors often the empty one"
    )
    guides: dict[Kind, str] = Field(
        {}, description="guides by the concept's kind, instead of `guide`; authors: 'art' for styles"
    )
    empty_prompt: Literal["end", "start"] = Field(
        "end",
        description="token an empty prompt is read at: end-of-text, or (authors) start-of-text, which all share",
    )
    preserve: Literal["retained", "none"] | tuple[str, ...] = Field(
        "retained", description="what is to stay: the set's retained concepts, nothing, or these prompts"
    )
    erase_aliases: bool = Field(
        False, description="also edit each concept's aliases, towards the same guide; papers: no"
    )
    templates: tuple[str, ...] = Field(
        ("{}",),
        min_length=1,
        description="sentences for concept and guide, each of them a further edit: '{}' is the phrase ('a cat'), "
        "'{name}' the bare name (authors)",
    )

    @field_validator("templates")
    @classmethod
    def _has_one_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(has_one_place, templates)):
            raise ValueError("every template should hold '{}' or '{name}' once, the place of the concept")
        return templates


@dataclass(frozen=True)
class Encoded:
    """A prompt after the text encoder."""

    embedding: Tensor  # (77, d), fp32
    last: int
    """The position of its last word; of an empty prompt 1, or 0, which is the token that all prompts share."""

    def keys(self, tokens: Tokens) -> Tensor:
        """The prompt's own keys, (n, d)."""
        if tokens == "last-subject":
            return self.embedding[self.last : self.last + 1]
        if tokens == "mean":
            return self.embedding[self.last :].mean(dim=0, keepdim=True)
        return self.embedding[self.last if tokens == "all" else 1 :]


def encode(base: Base, prompts: Sequence[str], empty_prompt: Literal["end", "start"] = "end") -> dict[str, Encoded]:
    """Each prompt once, by its text."""
    unique = list(dict.fromkeys(prompts))
    if not unique:
        return {}
    first = 1 if empty_prompt == "end" else 0
    positions = [max(first, last) for last in last_subject_token(base, unique)]
    embeddings = encode_prompts(base, unique).encoder_hidden_states
    return {text: Encoded(*pair) for text, *pair in zip(unique, embeddings, positions, strict=True)}


def aligned(concept: Encoded, guide: Encoded, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Keys of a concept's prompt and of its guide's, (n, d) each, one beside the other.

    n is 1 for `last-subject` and `mean`; for `all` both run from their last words as far as the later of the two can.
    """
    keys, guides = concept.keys(tokens), guide.keys(tokens)
    count = min(len(keys), len(guides))
    return keys[:count], guides[:count]


def edits(config: EditConfig, concept: Concept, task: UnlearningTask) -> list[tuple[str, str]]:
    """Prompts to edit, each with its guide."""
    guide = config.guides.get(concept.kind, config.guide)
    if guide is None:
        guide = task.concept_set.anchor_phrase(concept)
    guides = [template.format(guide, name=guide) for template in config.templates]
    return list(zip(edited_prompts(config, concept), cycle(guides), strict=False))


def edited_prompts(config: EditConfig, concept: Concept) -> list[str]:
    """The concept, and with `erase_aliases` its aliases, in every template."""
    names = [(concept.phrase, concept.name), *((alias, alias) for alias in concept.aliases if config.erase_aliases)]
    return [template.format(phrase, name=name) for phrase, name in names for template in config.templates]


def preserved(config: EditConfig, task: UnlearningTask) -> list[str]:
    """Prompts to preserve, each once; never one of the concepts to forget."""
    if config.preserve == "none":
        return []
    if config.preserve != "retained":
        return list(dict.fromkeys(config.preserve))
    return list(dict.fromkeys(kept.phrase for kept in task.retained()))


@dataclass(frozen=True)
class EditKeys:
    """What a closed form reads: n keys and what each is mapped to, and m keys that stay; fp32."""

    keys: Tensor  # (n, d)
    guides: Tensor  # (n, d)
    preserved: Tensor  # (m, d)


def edit_keys(
    config: EditConfig, task: UnlearningTask, tokens: Tokens, concepts: Sequence[Concept] | None = None
) -> EditKeys:
    """The keys of all edits of `concepts`, by default all of the task, and of what the task preserves."""
    pairs = [pair for concept in concepts or task.concepts for pair in edits(config, concept, task)]
    kept = preserved(config, task)
    encoded = encode(task.base, [*(prompt for pair in pairs for prompt in pair), *kept], config.empty_prompt)
    keys, guides = zip(*(aligned(encoded[prompt], encoded[guide], tokens) for prompt, guide in pairs), strict=True)
    width = keys[0].shape[1]
    rows = [encoded[prompt].keys(tokens) for prompt in kept]
    return EditKeys(torch.cat(keys), torch.cat(guides), torch.cat(rows) if rows else keys[0].new_zeros(0, width))


def second_moment(base: Base, captions: Sequence[str], cache: Path | None = None, padding: bool = False) -> Tensor:
    """The mean of c c^T over the tokens c of all captions, (d, d) fp64.

    From the first token to the end of text, or with `padding` to the end of the window. From a file in `cache` where
    there is one: it is a function of the text encoder and the captions alone.
    """
    file = (
        cache / f"second-moment-{content_id([base.state_id, list(captions), padding])}.safetensors" if cache else None
    )
    if file and file.is_file():
        return safetensors.torch.load(file.read_bytes())["moment"].to(base.device)
    encoded = encode(base, captions).values()
    tokens = torch.cat([found.embedding[: None if padding else found.last + 2] for found in encoded]).double()
    moment = tokens.T @ tokens / len(tokens)
    if file:
        with suppress(StorageError):  # a cache that cannot be written costs time only
            write_atomic(file, safetensors.torch.save({"moment": moment.cpu()}))
    return moment
