"""A little training on the edited model: the steps of attacks that teach it something, and what they keep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from efface.eval.oracle import BudgetExhausted, Oracle, checked

State = TypeVar("State")


class TrainingSettings(Protocol):
    """Fields of the config of an attack that trains."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def tests(self) -> int: ...


@dataclass(frozen=True)
class NoisyBatch:
    """Some of the images, noised."""

    rows: Tensor
    """Which images: (B,)."""
    x_t: Tensor
    timesteps: Tensor
    noise: Tensor
    """What a prediction should be: (B, 4, h, w)."""


@dataclass(frozen=True)
class Learnt(Generic[State]):
    """What there was after some steps."""

    steps: int
    state: State


def learn(
    oracle: Oracle,
    images: Tensor,
    minimize: Callable[[Tensor], None],
    config: TrainingSettings,
    generator: torch.Generator,
    loss_of: Callable[[NoisyBatch], Tensor],
    state: Callable[[], State],
) -> list[Learnt[State]]:
    """`minimize` on `loss_of` batches of `images`, step by step; the `state` of it, `config.tests` times on the way.

    A budget that ends on the way leaves what was kept until then; raises BudgetExhausted where that is nothing, and
    NotFinite where a loss is no number. All draws are from `generator`.
    """
    kept: list[Learnt[State]] = []
    last = len(oracle.schedule.timesteps)
    try:
        for step in range(1, config.steps + 1):
            rows = torch.randint(len(images), (config.batch_size,), generator=generator)
            timesteps = torch.randint(last, (config.batch_size,), generator=generator).to(images.device)
            noise = torch.randn((config.batch_size, *images.shape[1:]), generator=generator).to(images)
            x_t, truth = oracle.noised(images[rows], timesteps, noise)
            with torch.enable_grad():
                minimize(checked(loss_of(NoisyBatch(rows, x_t, timesteps, truth))))
            if step * config.tests % config.steps < config.tests:
                kept.append(Learnt(step, state()))
    except BudgetExhausted:
        if not kept:
            raise
    return kept
