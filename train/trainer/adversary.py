"""A tensor that Adam moves against the model that is trained, and that goes on from step to step.

What it is, a soft prompt or weights on candidates, is its user's; whoever keeps one puts its state into checkpoints.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

ADAM_KEYS = ("exp_avg", "exp_avg_sq")


class Adversary:
    """`value` begins as `start`, and rises on the objectives it is given."""

    def __init__(self, start: Tensor, learning_rate: float, weight_decay: float = 0.0) -> None:
        """weight_decay: as L2 in Adam, not decoupled."""
        self.value = nn.Parameter(start.detach().clone())
        self.optimizer = torch.optim.Adam([self.value], lr=learning_rate, weight_decay=weight_decay)
        self.steps = 0

    def climb(self, objective: Tensor) -> None:
        """One step of Adam that makes `objective` larger; nothing else gets a gradient."""
        self.step(torch.autograd.grad(-objective, [self.value])[0])

    def step(self, gradient: Tensor) -> None:
        """One step of Adam down this gradient."""
        self.value.grad = gradient
        self.optimizer.step()
        self.steps += 1

    def state(self) -> dict[str, Tensor]:
        kept = self.optimizer.state.get(self.value, {})
        moments = {key: kept.get(key, torch.zeros_like(self.value)) for key in ADAM_KEYS}
        return {"value": self.value.detach(), "steps": torch.tensor(float(self.steps)), **moments}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        with torch.no_grad():
            self.value.copy_(state["value"])
        if self.steps:
            moments = {key: state[key].to(self.value.device, copy=True) for key in ADAM_KEYS}
            self.optimizer.state[self.value] = {"step": torch.tensor(float(self.steps)), **moments}


def states_of(adversaries: Mapping[str, Adversary]) -> dict[str, Tensor]:
    """What several of them keep, for a checkpoint."""
    return {f"{name}/{key}": value for name, one in adversaries.items() for key, value in one.state().items()}


def restore_all(adversaries: Mapping[str, Adversary], state: Mapping[str, Tensor]) -> None:
    for name, one in adversaries.items():
        own = f"{name}/"
        one.restore({key.removeprefix(own): value for key, value in state.items() if key.startswith(own)})
