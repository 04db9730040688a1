"""Token search: a prompt of free tokens that the text encoder takes for a concept, without saying its name.

Greedy coordinate gradient on the base's own text encoder, as in MMA-Diffusion (Yang et al., CVPR 2024, arXiv
2311.17516), towards a direction as in Ring-A-Bell (Tsai et al., ICLR 2024, arXiv 2310.10012): with p the
output at the end-of-text token and m the mean over positions, both less their means over prompts for
other concepts,

    maximise  1/2 [ cos(p(prompt), p(concept)) + cos(m(prompt), m(concept)) ]

A step takes the gradient by the one-hot tokens, samples exchanges of one token among the best few of every
position, and keeps the best of them if it is better. Prompts always read back to the very tokens that were
searched.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from efface.errors import UserError
from efface.eval.attack import ATTACKS, AdversarialPrompt, AttackConfig, PromptAttack
from efface.eval.attack_target import AttackTarget
from efface.eval.attacking.derived_seed import derived_seed
from efface.eval.banned_words import Banned
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.embedding_space import one_hot_gradient, with_tokens
from efface.models.text.text_encoding import encode_ids, token_ids, with_all_vectors
from efface.models.text.token_space import best_exchanges, exchange_one

ATTEMPTS = 1000
POSITIONS = 24


class TokenSearchConfig(AttackConfig):
    """Smaller than MMA-Diffusion's (20 tokens, 512 exchanges from the 256 best, 500 steps): the search is restarted."""

    tokens: int = Field(8, ge=1, description="tokens of a prompt; MMA-Diffusion: 20")
    steps: int = Field(40, ge=0, description="steps of one search; MMA-Diffusion: 500")
    top_k: int = Field(64, ge=1, description="best exchanges at each position by gradient; MMA-Diffusion: 256")
    candidates: int = Field(48, ge=1, description="exchanges that a step samples and tries; MMA-Diffusion: 512")


@ATTACKS.register("token-search")
class TokenSearch(PromptAttack):
    """Greedy coordinate gradient on the base's text encoder, towards the concept and away from others."""

    Config = TokenSearchConfig

    @cached_property
    def _vocabulary(self) -> "Vocabulary":
        return Vocabulary(self.base)

    def find(self, target: AttackTarget, seed: int) -> Iterator[AdversarialPrompt]:
        """One prompt for each restart; the strength is the objective, in [-1, 1]."""
        goal = SearchObjective(self.base, target.prompts, target.others)
        for restart in count():
            from_seed = derived_seed("token search", seed, target.concept.name, restart)
            yield search(self.base, goal, self._vocabulary, target.banned, self.config, from_seed)


class SearchObjective:
    """What the prompt's encoding should point to: the concept's direct prompts, away from those of other concepts."""

    def __init__(self, base: Base, prompts: Sequence[str], against: Sequence[str] = ()) -> None:
        """prompts: at least one; against: prompts for other concepts, whose mean is taken as the origin."""
        ids = token_ids(base, [*prompts, *against])
        # The encoder is causal, so its output at the first positions does not need the rest of the padding.
        self.positions = max(POSITIONS, int(end_positions(ids, base.tokenizer.eos_token_id).max()) + 1)
        features = self.features(base, prompts)
        self.origin = self.features(base, against).mean(0) if against else torch.zeros_like(features[0])
        self.direction = F.normalize(features - self.origin, dim=-1).mean(0)

    @torch.no_grad()
    def features(self, base: Base, prompts: Sequence[str]) -> Tensor:
        """(B, 2, D) of prompts that end within the first `positions`."""
        ids = token_ids(base, prompts)[:, : self.positions]
        return pooled_and_mean(encode_ids(base.text_encoder, ids), end_positions(ids, base.tokenizer.eos_token_id))

    def similarity(self, features: Tensor) -> Tensor:
        """The objective of features (B, 2, D): (B,), in [-1, 1]."""
        return F.cosine_similarity(features - self.origin, self.direction[None], dim=-1).mean(-1)


def pooled_and_mean(hidden: Tensor, ends: Tensor) -> Tensor:
    """hidden (B, n, D) -> (B, 2, D): at the end-of-text token `ends` (B,), and the mean over positions."""
    return torch.stack([hidden[torch.arange(len(hidden)), ends], hidden.mean(1)], dim=1)


def end_positions(ids: Tensor, eos: int) -> Tensor:
    """Position of the first `eos` token in every row of ids (B, n): (B,)."""
    return (ids == eos).int().argmax(1)


class Vocabulary:
    """The tokens of a base that a prompt may be made of."""

    def __init__(self, base: Base) -> None:
        self.tokenizer: Any = base.tokenizer
        size = base.text_encoder.get_input_embeddings().num_embeddings
        self.texts = [self.text([token]) for token in range(size)]
        special = set(self.tokenizer.all_special_ids)
        self.readable = torch.tensor(
            [
                t not in special and bool(text) and text.isprintable() and "\ufffd" not in text
                for t, text in enumerate(self.texts)
            ]
        )

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)).strip()

    def allowed(self, banned: Banned) -> Tensor:
        """Which tokens are readable and not banned by themselves: bool, (vocabulary,)."""
        hits = torch.tensor([banned.matches(text) for text in self.texts])
        return self.readable & ~hits

    def valid(self, prompts: Sequence[Sequence[int]], banned: Banned) -> list[bool]:
        """For each prompt: does its text read back to the same tokens, and say nothing banned?"""
        texts = [self.text(tokens) for tokens in prompts]
        spelled_out = [with_all_vectors(self.tokenizer, text) for text in texts]
        again = self.tokenizer(spelled_out, add_special_tokens=False).input_ids
        return [
            list(tokens) == list(back) and not banned.matches(text)
            for tokens, back, text in zip(prompts, again, texts, strict=True)
        ]


def search(
    base: Base,
    goal: SearchObjective,
    vocabulary: Vocabulary,
    banned: Banned,
    config: TokenSearchConfig,
    seed: int = 0,
) -> AdversarialPrompt:
    """One restart of the search, from a random prompt; a function of its arguments alone.

    The provenance holds the tokens, and the objective of the random prompt (`start`).

    Raises UserError where no prompt of so many tokens can be made from what is not banned.
    """
    generator = torch.Generator().manual_seed(seed)
    allowed = vocabulary.allowed(banned)
    tokens = _random_prompt(vocabulary, banned, allowed, config.tokens, generator)
    best = start = float(_similarities(base, goal, tokens[None])[0])
    for _ in range(config.steps):
        gain = _token_gains(base, goal, tokens)
        choices = best_exchanges(gain, tokens, allowed, config.top_k)
        tried = exchange_one(tokens, choices, config.candidates, generator)
        tried = tried[torch.tensor(vocabulary.valid(tried.tolist(), banned))]
        if len(tried) == 0:
            continue
        similarities = _similarities(base, goal, tried)
        winner = int(similarities.argmax())
        if float(similarities[winner]) > best:
            best, tokens = float(similarities[winner]), tried[winner]
    return AdversarialPrompt(
        vocabulary.text(tokens.tolist()), best, {"tokens": tokens.tolist(), "start": start, "seed": seed}
    )


def _random_prompt(
    vocabulary: Vocabulary, banned: Banned, allowed: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Tokens (count,) that make a valid prompt, built token by token."""
    pool = allowed.nonzero().flatten()
    tokens: list[int] = []
    for _ in range(ATTEMPTS if len(pool) > 1 else 0):
        token = int(pool[torch.randint(len(pool), (1,), generator=generator)])
        if vocabulary.valid([[*tokens, token]], banned)[0]:
            tokens.append(token)
        if len(tokens) == count:
            return torch.tensor(tokens)
    raise UserError(
        f"token search: no prompt of {count} tokens can be made from the {len(pool)} that are not banned, "
        "should be fewer tokens or another tokenizer"
    )


@torch.no_grad()
def _similarities(base: Base, goal: SearchObjective, tokens: Tensor) -> Tensor:
    """The objective of prompts (B, n): (B,) on the CPU."""
    hidden = encode_ids(base.text_encoder, with_tokens(base, tokens)[:, : _length(goal, tokens)])
    ends = torch.full((len(tokens),), tokens.shape[1] + 1)
    return goal.similarity(pooled_and_mean(hidden, ends)).cpu()


def _token_gains(base: Base, goal: SearchObjective, tokens: Tensor) -> Tensor:
    """Derivative of the objective by the one-hot token at every position: (n, vocabulary) on the CPU."""
    ends = torch.tensor([len(tokens) + 1])

    def objective(cond: Conditioning) -> Tensor:
        return goal.similarity(pooled_and_mean(cond.encoder_hidden_states, ends)).sum()

    ids = with_tokens(base, tokens[None])[:, : _length(goal, tokens[None])]
    return one_hot_gradient(base, ids, len(tokens), objective)


def _length(goal: SearchObjective, tokens: Tensor) -> int:
    """Of the beginning that has to be encoded of prompts (B, n): the objective's positions, and the prompt's end."""
    return max(goal.positions, tokens.shape[1] + 2)
