"""Which concepts an eraser looks among: for what it might harm (EAP), or for what to map a concept to (AGE).

The candidates are the frequent words of the base's own tokenizer, the concept set, or a list; of these the ones nearest
to the concept, by the L2 distance of the whole encoded prompts, thinned to spread over all distances. The last is the
authors' k-means: they cluster the distances, one number a word, and take the word nearest each centre.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import encode_prompts
from efface.train.method import MethodConfig, UnlearningTask

FREQUENT_WORDS = 3000
WORD_END = "</w>"
SHORTEST_WORD = 3  # letters
LLOYD_ITERATIONS = 100

Prompts = Annotated[tuple[str, ...], Field(min_length=1)]


class VocabularyConfig(MethodConfig):
    """The settings of a method that searches among concepts."""

    vocabulary: Literal["words", "concepts"] | Prompts = Field(
        "words",
        description="the frequent words of the base's tokenizer (authors: a list of 3000 English words), the other "
        "concepts of the set, or these prompts",
    )
    nearest: int = Field(1000, ge=1, description="candidates nearest to the concept that are kept; authors: 1000")
    centres: int = Field(100, ge=0, description="of these, those nearest to so many centres; authors: 100, 0: all")


def candidates(task: UnlearningTask, concept: Concept, config: VocabularyConfig) -> tuple[list[str], Conditioning]:
    """The prompts to look among, the concept's nearest first, and one row each.

    Raises UserError where there are none.
    """
    forgotten = (*task.concepts, *task.erased)
    gone = {name.casefold() for one in forgotten for name in (one.phrase, one.name, *one.aliases)}
    words = [word for word in _vocabulary(task, config.vocabulary) if word.casefold() not in gone]
    if not words:
        raise UserError(f"the vocabulary beside '{concept.name}' is empty: list some prompts as vocabulary")
    rows = encode_prompts(task.base, words)
    own = encode_prompts(task.base, [concept.phrase]).encoder_hidden_states.double().flatten(1)
    distances = (rows.encoder_hidden_states.double().flatten(1) - own).norm(dim=1)
    order = distances.argsort(stable=True)[: config.nearest]
    if 0 < config.centres < len(order):
        order = order[nearest_to_centres(distances[order], config.centres)]
    chosen = order.tolist()
    return [words[position] for position in chosen], rows[chosen]


def nearest_to_centres(values: Tensor, count: int) -> Tensor:
    """The positions, ascending and each once, of the values (n,) nearest to the `count` means of their k-means.

    Lloyd's iterations from evenly spaced quantiles, so that it depends on no generator.
    """
    values = values.double()
    quantiles = (torch.arange(count, dtype=torch.float64, device=values.device) + 0.5) / count
    centres = values.quantile(quantiles)
    for _ in range(LLOYD_ITERATIONS):
        owner = (values[:, None] - centres[None]).abs().argmin(dim=1)
        counts = torch.bincount(owner, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, owner, values)
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return (values[:, None] - centres[None]).abs().argmin(dim=0).unique()


def _vocabulary(task: UnlearningTask, vocabulary: str | Sequence[str]) -> list[str]:
    if vocabulary == "concepts":
        return list(dict.fromkeys(concept.phrase for concept in task.concept_set.all))
    if vocabulary != "words":
        return list(vocabulary)
    ids = task.base.tokenizer.get_vocab()
    # the ids of byte-pair encoding go by frequency
    tokens = sorted((token for token in ids if token.endswith(WORD_END)), key=lambda token: int(ids[token]))
    words = [token.removesuffix(WORD_END) for token in tokens]
    plain = (word for word in words if word.isascii() and word.isalpha() and len(word) >= SHORTEST_WORD)
    return task.may_see(plain)[:FREQUENT_WORDS]
