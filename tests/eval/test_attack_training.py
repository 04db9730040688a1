"""The training inside attacks: AdamW's own steps down the loss, and what is kept of them."""

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from efface.eval.attacking.attack_training import Learnt, NoisyBatch, learn
from efface.eval.oracle import BudgetExhausted, NotFinite, Oracle
from efface.models.adversary import Adversary

RATE, DECAY = 0.1, 0.01  # the second is torch's default for AdamW
IMAGES = torch.arange(3.0)[:, None, None, None].expand(3, 4, 2, 2)
ORACLE = cast(
    Oracle,
    SimpleNamespace(
        schedule=SimpleNamespace(timesteps=range(10)), noised=lambda images, timesteps, noise: (images + noise, noise)
    ),
)


def learnt(start: float, steps: int, loss: Any = None, tests: int = 1) -> list[Learnt[float]]:
    """loss: of the value that is learnt, and a batch."""
    config = SimpleNamespace(steps=steps, batch_size=2, learning_rate=RATE, tests=tests)
    draws = torch.Generator().manual_seed(0)
    adversary = Adversary(torch.tensor(start), RATE, DECAY, "adamw")
    value = adversary.value
    loss_of = partial(loss or parabola, value)
    return learn(ORACLE, IMAGES, adversary.minimize, config, draws, loss_of, lambda: float(value.detach()))


def parabola(value: Tensor, batch: NoisyBatch) -> Tensor:
    return (value - 3).square().sum()


def test_the_first_step_is_the_learning_rate_against_the_gradients_sign() -> None:
    """AdamW: the first m / sqrt(v) is the sign of the gradient, and the weight decays by rate x decay before."""
    for start, sign in ((1.0, 1), (5.0, -1)):
        (kept,) = learnt(start, 1)
        assert kept.state == pytest.approx(start * (1 - RATE * DECAY) + sign * RATE, abs=1e-6)


def test_many_steps_end_at_the_minimum() -> None:
    (kept,) = learnt(0.0, 300)
    assert kept.steps == 300 and kept.state == pytest.approx(3, abs=0.1)


def test_a_batch_is_noised_images_and_what_they_were_noised_with() -> None:
    seen: list[NoisyBatch] = []

    def loss(value: Tensor, batch: NoisyBatch) -> Tensor:
        seen.append(batch)
        return parabola(value, batch)

    learnt(0.0, 4, loss)
    for batch in seen:
        torch.testing.assert_close(batch.x_t - batch.noise, IMAGES[batch.rows])
    assert len({tuple(batch.noise.flatten().tolist()) for batch in seen}) == 4


def test_so_many_states_as_there_are_tests_are_kept_at_even_distances() -> None:
    assert [kept.steps for kept in learnt(0.0, 6, tests=3)] == [2, 4, 6]


def test_a_budget_that_ends_leaves_what_was_kept_before() -> None:
    def ends_at(step: int) -> list[int]:
        calls = iter(range(1, 100))

        def loss(value: Tensor, batch: NoisyBatch) -> Tensor:
            if next(calls) == step:
                raise BudgetExhausted
            return parabola(value, batch)

        return [kept.steps for kept in learnt(0.0, 6, loss, tests=3)]

    assert ends_at(5) == [2, 4]
    with pytest.raises(BudgetExhausted):
        ends_at(2)


def test_a_loss_that_is_no_number_ends_it() -> None:
    with pytest.raises(NotFinite):
        learnt(float("nan"), 1)
