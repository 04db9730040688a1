"""The adversary that methods train against and attacks search with: its rules, its bounds, and its memory."""

import pytest
import torch
from torch import Tensor

from efface.models.adversary import Adversary, Rule, within
from efface.models.text.token_space import project_to_simplex

START = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)


def loss(value: Tensor) -> Tensor:
    """Its gradient is twice the value less (1, 1, 1)."""
    return (value - 1).square().sum()


@pytest.mark.parametrize("radius", [0.3, 0.05])
def test_projected_gradient_descent_goes_by_signs_within_its_box(radius: float) -> None:
    adversary = Adversary(START, 0.1, rule="sign", project=within(START, radius, -0.98, 5.0))
    for _ in range(2):
        adversary.minimize(loss(adversary.value))
    step = min(0.2, radius)
    expected = [0.5 + step, -1.0 + step, 2.0 - step]  # towards 1
    torch.testing.assert_close(adversary.value, torch.tensor([expected], dtype=torch.float64))
    up = Adversary(START, 0.1, rule="sign", project=within(START, radius, -0.98, 5.0))
    up.maximize(loss(up.value))
    assert up.value[0, 1].item() == -0.98, "the box is cut where values end"


@pytest.mark.parametrize("rule", ["adam", "adamw"])
def test_adam_decays_as_its_rule_says(rule: Rule) -> None:
    adversary = Adversary(START, 0.1, weight_decay=0.5, rule=rule)
    adversary.minimize(loss(adversary.value))
    gradient = 2 * (START - 1)
    if rule == "adam":  # L2: part of the gradient, of which a first step of Adam keeps the sign alone
        expected = START - 0.1 * (gradient + 0.5 * START).sign()
    else:
        expected = START * (1 - 0.1 * 0.5) - 0.1 * gradient.sign()
    torch.testing.assert_close(adversary.value, expected, rtol=1e-6, atol=1e-6)


def test_weights_on_tokens_stay_on_the_simplex() -> None:
    adversary = Adversary(torch.full((1, 3), 1 / 3), 0.5, project=project_to_simplex)
    adversary.maximize(adversary.value[0, 0])
    torch.testing.assert_close(adversary.value.data, torch.tensor([[2 / 3, 1 / 6, 1 / 6]]))


@pytest.mark.parametrize("rule", ["adam", "adamw", "sign"])
def test_one_that_was_stopped_goes_on_as_if_it_had_not_been(rule: Rule) -> None:
    whole, stopped, resumed = (Adversary(START, 0.1, 0.1, rule) for _ in range(3))
    for step in range(4):
        whole.minimize(loss(whole.value))
        if step < 2:
            stopped.minimize(loss(stopped.value))
    resumed.restore({name: value.clone() for name, value in stopped.state().items()})
    for _ in range(2):
        resumed.minimize(loss(resumed.value))
    assert torch.equal(resumed.value, whole.value) and resumed.steps == 4


def test_nothing_but_the_adversary_gets_a_gradient() -> None:
    weight = torch.ones(3, 3, dtype=torch.float64, requires_grad=True)
    adversary = Adversary(START, 0.1)
    adversary.minimize(loss(adversary.value @ weight))
    assert weight.grad is None and not torch.equal(adversary.value, START)
