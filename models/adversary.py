"""An adversary: a tensor that is moved, by its gradient, to bring a concept back, and that goes on from step to step.

What it is, is its user's: the embeddings of tokens, a prompt's encoding, weights on words. Methods that train against
one and attacks on what they trained share it; whoever keeps one puts its state into checkpoints.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

ADAM_KEYS = ("exp_avg", "exp_avg_sq")

Rule = Literal["adam", "adamw", "sign"]
Projection = Callable[[Tensor], Tensor]


class Adversary:
    """`value` begins as `start`, and goes down on the losses it is given, or up on the objectives."""

    def __init__(
        self,
        start: Tensor,
        learning_rate: float,
        weight_decay: float = 0.0,
        rule: Rule = "adam",
        project: Projection | None = None,
    ) -> None:
        """rule: torch's Adam, its AdamW, or the learning rate times the gradient's sign (projected gradient descent).

        weight_decay: L2 in Adam, decoupled in AdamW; project: what brings a value back into its bounds, after a step.
        """
        self.value = nn.Parameter(start.detach().clone())
        self.project = project
        self.optimizer: torch.optim.Optimizer
        if rule == "sign":
            self.optimizer = torch.optim.SGD([self.value], lr=learning_rate)
        else:
            optimizer = torch.optim.AdamW if rule == "adamw" else torch.optim.Adam
            self.optimizer = optimizer([self.value], lr=learning_rate, weight_decay=weight_decay)
        self.rule = rule
        self.steps = 0

    def minimize(self, loss: Tensor) -> None:
        """One step that makes `loss` smaller; nothing else gets a gradient."""
        self.step(torch.autograd.grad(loss, [self.value])[0])

    def maximize(self, objective: Tensor) -> None:
        """One step that makes `objective` larger; nothing else gets a gradient."""
        self.minimize(-objective)

    def step(self, gradient: Tensor) -> None:
        """One step down this gradient."""
        self.value.grad = gradient.sign() if self.rule == "sign" else gradient
        self.optimizer.step()
        if self.project is not None:
            with torch.no_grad():
                self.value.copy_(self.project(self.value))
        self.steps += 1

    def state(self) -> dict[str, Tensor]:
        kept = self.optimizer.state.get(self.value, {})
        keys = () if self.rule == "sign" else ADAM_KEYS
        moments = {key: kept.get(key, torch.zeros_like(self.value)) for key in keys}
        return {"value": self.value.detach(), "steps": torch.tensor(float(self.steps)), **moments}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        with torch.no_grad():
            self.value.copy_(state["value"])
        if self.steps and self.rule != "sign":
            moments = {key: state[key].to(self.value.device, copy=True) for key in ADAM_KEYS}
            self.optimizer.state[self.value] = {"step": torch.tensor(float(self.steps)), **moments}


def within(centre: Tensor, radius: float, least: float | None = None, most: float | None = None) -> Projection:
    """Into the box of this radius around `centre`, then between `least` and `most`."""

    def project(value: Tensor) -> Tensor:
        boxed = centre + (value - centre).clamp(-radius, radius)
        return boxed if least is None and most is None else boxed.clamp(least, most)

    return project


def states_of(adversaries: Mapping[str, Adversary]) -> dict[str, Tensor]:
    """What several of them keep, for a checkpoint."""
    return {f"{name}/{key}": value for name, one in adversaries.items() for key, value in one.state().items()}


def restore_all(adversaries: Mapping[str, Adversary], state: Mapping[str, Tensor]) -> None:
    for name, one in adversaries.items():
        own = f"{name}/"
        one.restore({key.removeprefix(own): value for key, value in state.items() if key.startswith(own)})
