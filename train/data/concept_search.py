"""A learnt choice among candidate concepts: weights pi, relaxed by Gumbel-softmax, that rise on a loss (EAP, AGE).

    c(pi) = softmax((pi + gumbel) / temperature) @ [c_1, …, c_n]

In its `hard` form the mixture is one candidate, and the gradient is that of the soft one. pi begins as 1/n, as in the
authors' code, and is moved by Adam.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.models.adversary import Adversary
from efface.models.conditioning import Conditioning
from efface.train.data.vocabulary import VocabularyConfig

TINY = 1e-10  # keeps both logarithms of the Gumbel noise finite; as the authors


class SearchConfig(VocabularyConfig):
    """The settings of the search."""

    search_learning_rate: float = Field(1e-2, gt=0, description="of Adam on the weights pi; authors 1e-2")
    temperature: float = Field(2.0, gt=0, description="of the Gumbel-softmax; authors: 2, AGE for objects 0.1")
    mixture: Literal["hard", "soft"] = Field("hard", description="one candidate at a time, or the largest few mixed")
    mixed: int = Field(5, ge=1, description="candidates in a soft mixture; authors 5")


class ConceptSearch:
    """One concept's candidates, and an adversary that is their weights."""

    def __init__(self, rows: Conditioning, config: SearchConfig) -> None:
        self.config, self.rows = config, rows
        start = torch.full((len(rows),), 1 / len(rows), device=rows.device)
        self.adversary = Adversary(start, config.search_learning_rate)

    @property
    def weights(self) -> Tensor:
        """pi, (n,)."""
        return self.adversary.value

    def draw(self, rng: torch.Generator) -> Conditioning:
        """One row, a mixture; its gradient reaches the weights."""
        uniform = torch.rand(len(self.weights), generator=rng).to(self.weights.device)
        gumbel = -torch.log(-torch.log(uniform + TINY) + TINY)
        mixture = relaxed(self.weights + gumbel, self.config.temperature, self.config.mixture, self.config.mixed)

        def mixed(rows: Tensor) -> Tensor:
            return (mixture @ rows.flatten(1)).view(1, *rows.shape[1:])

        added = {name: mixed(rows) for name, rows in self.rows.added.items()}
        return Conditioning(mixed(self.rows.encoder_hidden_states), added)


def relaxed(logits: Tensor, temperature: float, mixture: str, mixed: int) -> Tensor:
    """The share of each candidate, (n,), from perturbed weights (n,).

    `hard`: 1 for the largest and the gradient of the soft shares. `soft`: the largest `mixed` shares, their sum 1.
    """
    soft = (logits / temperature).softmax(dim=-1)
    if mixture == "hard":
        one = torch.zeros_like(soft)
        one[soft.argmax()] = 1.0
        return (one - soft).detach() + soft
    least = soft.topk(min(mixed, len(soft))).values[-1]
    kept = soft * (soft >= least)
    return kept / kept.sum()
