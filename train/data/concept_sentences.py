"""Sentences about a concept, word for word beside the same ones about its anchor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from efface.concepts.concept import Concept, ConceptSet, Kind
from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import encode_prompts, last_subject_token, subject_tokens, token_ids
from efface.train.closed_form import Statistics, key_statistics
from efface.train.data.captions import captions
from efface.train.data.conditions import without_article


@dataclass(frozen=True)
class Sentences:
    """n sentences."""

    texts: tuple[str, ...]
    conditioning: Conditioning  # n rows
    anchors: Tensor  # (n, tokens, d): the anchor's sentences after the text encoder
    shared: list[tuple[list[int], list[int]]]
    """Of each sentence the positions that do not name the concept, and those of the same words in the anchor's."""
    positions: Tensor  # (n, tokens), bool: where the concept is named
    ends: list[int]
    """The position of each sentence's first end-of-text token."""

    def moment(self) -> Tensor:
        """The sum of c c^T over every token c of every sentence, (d, d) fp64: all that a solve needs of them."""
        keys = self.conditioning.encoder_hidden_states.flatten(0, 1).double()
        return keys.T @ keys

    def surroundings(self) -> Statistics:
        """The words that do not name the concept as keys, the same words in the anchor's sentences as values."""
        rows = zip(self.conditioning.encoder_hidden_states, self.anchors, self.shared, strict=True)
        own, others = zip(*((keys[own], anchor[other]) for keys, anchor, (own, other) in rows), strict=True)
        return key_statistics(torch.cat(own), torch.cat(others))

    def concept_tokens(self, pooler: Literal["none", "eos", "all"]) -> Tensor:
        """(n, tokens), bool: where the concept is named, and the first or all of the end-of-text tokens."""
        tokens = self.positions.clone()
        for row, end in enumerate(self.ends):
            tokens[row, end : {"none": end, "eos": end + 1, "all": None}[pooler]] = True
        return tokens


def sentences(
    base: Base, concept: Concept, concept_set: ConceptSet, own: Mapping[Kind, Sequence[str]], limit: int
) -> Sentences:
    """At most `limit` captions of the concept and of its anchor (`captions.py`).

    Raises UserError where the concept has no anchor, or a sentence does not name it as the base reads it.
    """
    pairs = captions(concept, concept_set, own, limit)
    texts = tuple(pair.targets[0] for pair in pairs)
    conditioning = encode_prompts(base, texts)
    positions = torch.zeros(conditioning.encoder_hidden_states.shape[:2], dtype=torch.bool, device=base.device)
    for row, text in enumerate(texts):
        subject = next((words for words in (without_article(concept.phrase), concept.name) if words in text), "")
        if not (found := subject_tokens(base, text, subject)):
            raise UserError(f"no words of '{concept.name}' are in the sentence '{text}', as the base reads it")
        positions[row, found] = True
    anchors = [pair.anchor for pair in pairs]
    ids = zip(token_ids(base, texts).tolist(), token_ids(base, anchors).tolist(), strict=True)
    ends = [last + 1 for last in last_subject_token(base, texts)]
    lengths = zip(ends, (last + 1 for last in last_subject_token(base, anchors)), strict=True)
    shared = [shared_positions(*pair, *length) for pair, length in zip(ids, lengths, strict=True)]
    return Sentences(texts, conditioning, encode_prompts(base, anchors).encoder_hidden_states, shared, positions, ends)


def shared_positions(ids: list[int], others: list[int], end: int, other_end: int) -> tuple[list[int], list[int]]:
    """Positions of the words that two token sequences begin and end with, one list beside the other.

    `end` and `other_end` are where their first end-of-text tokens are; the padding behind them counts as far as both
    windows reach.
    """
    before = 0
    while before < min(end, other_end) and ids[before] == others[before]:
        before += 1
    after = 0
    while after < min(end, other_end) - before and ids[end - 1 - after] == others[other_end - 1 - after]:
        after += 1
    tail = after + min(len(ids) - end, len(others) - other_end)
    starts = end - after, other_end - after
    own, other = ([*range(before), *range(start, start + tail)] for start in starts)
    return own, other
