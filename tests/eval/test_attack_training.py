"""The training inside attacks: AdamW's own steps down the loss, and what is kept of them."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from efface.eval.attack_training import Learnt, NoisyBatch, learn
from efface.eval.oracle import BudgetExhausted, NotFinite, Oracle

RATE, DECAY = 0.1, 0.01  # the second is torch's default for AdamW
IMAGES = torch.arange(3.0)[:, None, None, None].expand(3, 4, 2, 2)
ORACLE = cast(
    Oracle,
    SimpleNamespace(
        schedule=SimpleNamespace(timesteps=range(10)), noised=lambda images, timesteps, noise: (images + noise, noise)
    ),
)


def learnt(value: Tensor, steps: int, loss: Any, tests: int = 1) -> list[Learnt[float]]:
    config = SimpleNamespace(steps=steps, batch_size=2, learning_rate=RATE, tests=tests)
    draws = torch.Generator().manual_seed(0)
    return learn(ORACLE, IMAGES, [value], config, draws, loss, lambda: float(value.detach()))


def parabola(value: Tensor) -> Any:
    return lambda batch: (value - 3).square().sum()


def test_the_first_step_is_the_learning_rate_against_the_gradients_sign() -> None:
    """AdamW: the first m / sqrt(v) is the sign of the gradient, and the weight decays by rate x decay before."""
    for start, sign in ((1.0, 1), (5.0, -1)):
        value = torch.tensor(start, requires_grad=True)
        (kept,) = learnt(value, 1, parabola(value))
        assert kept.state == pytest.approx(start * (1 - RATE * DECAY) + sign * RATE, abs=1e-6)


def test_many_steps_end_at_the_minimum() -> None:
    value = torch.tensor(0.0, requires_grad=True)
    (kept,) = learnt(value, 300, parabola(value))
    assert kept.steps == 300 and kept.state == pytest.approx(3, abs=0.1)


def test_a_batch_is_noised_images_and_what_they_were_noised_with() -> None:
    seen: list[NoisyBatch] = []
    value = torch.tensor(0.0, requires_grad=True)
    learnt(value, 4, lambda batch: seen.append(batch) or parabola(value)(batch))  # type: ignore[func-returns-value]
    for batch in seen:
        torch.testing.assert_close(batch.x_t - batch.noise, IMAGES[batch.rows])
    assert len({tuple(batch.noise.flatten().tolist()) for batch in seen}) == 4


def test_so_many_states_as_there_are_tests_are_kept_at_even_distances() -> None:
    value = torch.tensor(0.0, requires_grad=True)
    assert [kept.steps for kept in learnt(value, 6, parabola(value), tests=3)] == [2, 4, 6]


def test_a_budget_that_ends_leaves_what_was_kept_before() -> None:
    def ends_at(step: int) -> list[int]:
        value, calls = torch.tensor(0.0, requires_grad=True), iter(range(1, 100))

        def loss(batch: NoisyBatch) -> Tensor:
            if next(calls) == step:
                raise BudgetExhausted
            return cast(Tensor, parabola(value)(batch))

        return [kept.steps for kept in learnt(value, 6, loss, tests=3)]

    assert ends_at(5) == [2, 4]
    with pytest.raises(BudgetExhausted):
        ends_at(2)


def test_a_loss_that_is_no_number_ends_it() -> None:
    value = torch.tensor(float("nan"), requires_grad=True)
    with pytest.raises(NotFinite):
        learnt(value, 1, parabola(value))
