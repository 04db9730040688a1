"""A learnt choice among candidate concepts: weights pi, relaxed by Gumbel-softmax, that rise on a loss (EAP, AGE).

    c(pi) = softmax((pi + gumbel) / temperature) @ [c_1, …, c_n]

In its `hard` form the mixture is one candidate, and the gradient is that of the soft one. pi begins as 1/n, as in the
authors' code, and is moved by Adam.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from efface.models.conditioning import Conditioning
from efface.train.data.vocabulary import VocabularyConfig

TINY = 1e-10  # keeps both logarithms of the Gumbel noise finite; as the authors
ADAM_KEYS = ("exp_avg", "exp_avg_sq")


class SearchConfig(VocabularyConfig):
    """The settings of the search."""

    search_learning_rate: float = Field(1e-2, gt=0, description="of Adam on the weights pi; authors 1e-2")
    temperature: float = Field(2.0, gt=0, description="of the Gumbel-softmax; authors: 2, AGE for objects 0.1")
    mixture: Literal["hard", "soft"] = Field("hard", description="one candidate at a time, or the largest few mixed")
    mixed: int = Field(5, ge=1, description="candidates in a soft mixture; authors 5")


class ConceptSearch:
    """One concept's candidates and their weights."""

    def __init__(self, rows: Conditioning, config: SearchConfig) -> None:
        self.config, self.rows = config, rows
        count = len(rows)
        self.weights = nn.Parameter(torch.full((count,), 1 / count, device=rows.device))
        self.optimizer = torch.optim.Adam([self.weights], lr=config.search_learning_rate)
        self.steps = 0

    def draw(self, rng: torch.Generator) -> Conditioning:
        """One row, a mixture; its gradient reaches the weights."""
        uniform = torch.rand(len(self.weights), generator=rng).to(self.weights.device)
        gumbel = -torch.log(-torch.log(uniform + TINY) + TINY)
        mixture = relaxed(self.weights + gumbel, self.config.temperature, self.config.mixture, self.config.mixed)
        states = self.rows.encoder_hidden_states
        added = {
            name: (mixture @ value.flatten(1)).view(1, *value.shape[1:]) for name, value in self.rows.added.items()
        }
        return Conditioning((mixture @ states.flatten(1)).view(1, *states.shape[1:]), added)

    def climb(self, objective: Tensor) -> None:
        """A step of Adam that makes `objective` larger."""
        (gradient,) = torch.autograd.grad(-objective, [self.weights])
        self.weights.grad = gradient
        self.optimizer.step()
        self.steps += 1

    def state(self) -> dict[str, Tensor]:
        kept = self.optimizer.state.get(self.weights, {})
        return {"weights": self.weights.detach(), "steps": torch.tensor(float(self.steps))} | {
            key: kept.get(key, torch.zeros_like(self.weights)) for key in ADAM_KEYS
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        with torch.no_grad():
            self.weights.copy_(state["weights"])
        if self.steps:
            moments = {key: state[key].to(self.weights.device, copy=True) for key in ADAM_KEYS}
            self.optimizer.state[self.weights] = {"step": torch.tensor(float(self.steps)), **moments}


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


def states_of(searches: Sequence[ConceptSearch]) -> dict[str, Tensor]:
    """What several searches keep, for a checkpoint."""
    return {f"{number}/{key}": value for number, search in enumerate(searches) for key, value in search.state().items()}


def restore_all(searches: Sequence[ConceptSearch], state: Mapping[str, Tensor]) -> None:
    for number, search in enumerate(searches):
        search.restore({key.split("/", 1)[1]: value for key, value in state.items() if key.startswith(f"{number}/")})
