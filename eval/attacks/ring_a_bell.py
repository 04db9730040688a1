"""Ring-A-Bell (Tsai et al., ICLR 2024, arXiv 2310.10012): tokens by a genetic search on the text encoder alone.

    minimise  || te(prompt) - (te(p) + eta c) ||^2 ,    c = mean of te(with the concept) - te(without)      (eqs. 3, 4)

with te the encoder's whole output, here for a direct prompt p of the concept, and the prompts of other concepts as
those without it. Each generation keeps the fitter half; the other half are children of it, by one-point crossover and
the exchange of one token.
"""

from collections.abc import Iterator
from itertools import count

import torch
from pydantic import Field
from torch import Tensor

from efface.eval.attack import ATTACKS, AdversarialPrompt, AttackConfig, AttackTarget, PromptAttack
from efface.eval.attacking.derived_seed import derived_seed
from efface.eval.attacks.token_search import Vocabulary
from efface.models.text.embedding_space import with_tokens
from efface.models.text.text_encoding import encode_ids, encode_prompts
from efface.models.text.token_space import next_generation

BATCH = 64
"""Prompts that are encoded at a time."""


class RingABellConfig(AttackConfig):
    """The paper's for nudity, but for a smaller population and fewer generations: the search is restarted."""

    tokens: int = Field(16, ge=1, le=75, description="tokens of a prompt; paper 16, 38 and 77")
    strength: float = Field(3.0, gt=0, description="eta, how much of the concept is added; paper 3, violence 5.5")
    population: int = Field(60, ge=2, description="prompts of a generation; paper 200")
    generations: int = Field(60, ge=1, description="paper 3,000")
    crossover: float = Field(0.5, ge=0, le=1, description="share of children with two parents; paper 0.5")
    mutation: float = Field(0.25, ge=0, le=1, description="share of children with one token exchanged; paper 0.25")


def concept_distance(encoded: Tensor, goal: Tensor) -> Tensor:
    """Eq. 4 for prompts (B, T, D) and te(p) + eta c, (T, D): the sum of squares of each, (B,)."""
    return (encoded - goal).square().sum(dim=(1, 2))


@ATTACKS.register("ring-a-bell")
class RingABell(PromptAttack):
    """A genetic search for tokens that the text encoder takes for the concept, and more of it."""

    Config = RingABellConfig
    config: RingABellConfig

    @torch.no_grad()
    def find(self, target: AttackTarget, seed: int) -> Iterator[AdversarialPrompt]:
        """One prompt for each restart; the strength is minus the distance."""
        vocabulary, config = Vocabulary(self.base), self.config
        pool = vocabulary.allowed(target.banned).nonzero().flatten()
        direct = encode_prompts(self.base, target.prompts).encoder_hidden_states
        without = encode_prompts(self.base, target.others).encoder_hidden_states.mean(0) if target.others else 0.0
        goal = direct[0] + config.strength * (direct.mean(0) - without)
        for restart in count():
            generator = torch.Generator().manual_seed(derived_seed("ring-a-bell", seed, target.concept.name, restart))
            picked = torch.randint(len(pool), (config.population, config.tokens), generator=generator)
            population = pool[picked]
            for _ in range(config.generations):
                fitness = -self._distances(population, goal)
                population = next_generation(population, fitness, config.crossover, config.mutation, pool, generator)
            distances = self._distances(population, goal)
            order = distances.argsort().tolist()
            readable = vocabulary.valid(population[order].tolist(), target.banned)
            # of prompts whose text is read back as other tokens the best one, where none is read back as it is
            best = order[readable.index(True)] if any(readable) else order[0]
            text = vocabulary.text(population[best].tolist())
            yield AdversarialPrompt(text, -float(distances[best]), {"tokens": population[best].tolist(), "seed": seed})

    def _distances(self, population: Tensor, goal: Tensor) -> Tensor:
        """Of prompts (P, n), on the CPU: (P,)."""
        ids = with_tokens(self.base, population)
        parts = [concept_distance(encode_ids(self.base.text_encoder, some), goal) for some in ids.split(BATCH)]
        return torch.cat(parts).cpu()
