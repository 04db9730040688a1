"""TEA's two losses, derived in numpy and fp64 from states, discriminator and masks, and its steps in their order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

Prepare = Callable[..., tuple[Any, Any]]


def bce(logits: np.ndarray, label: int) -> np.ndarray:
    p = 1 / (1 + np.exp(-logits))
    return -np.log(p if label else 1 - p)


def judged(method: Any, states: Tensor) -> np.ndarray:
    """The discriminator's logits, (B, 77): linear, ReLU, linear."""
    w1, b1, w2, b2 = (value.detach().double().numpy() for value in method.discriminator.parameters())
    return np.maximum(states.detach().double().numpy() @ w1.T + b1, 0) @ w2[0] + b2


def mean_of(losses: np.ndarray, mask: Tensor) -> float:
    """Over the tokens of all prompts together."""
    return float((losses * mask.numpy()).sum() / mask.sum())


def test_padding_and_special_tokens_are_not_looked_at(prepare: Prepare) -> None:
    method, _ = prepare("tea")
    tokens = method.tokens(["a cat", "a"])
    tokenizer = method.base.tokenizer
    assert tokens.mask.sum(1).tolist() == [
        len(tokenizer(t, add_special_tokens=False).input_ids) for t in ("a cat", "a")
    ]
    assert not torch.isin(tokens.ids[tokens.mask.bool()], torch.tensor(tokenizer.all_special_ids)).any()


def test_the_losses_are_those_of_the_paper(prepare: Prepare, shaken: Callable[[Any], None]) -> None:
    method, student = prepare("tea", adversarial_weight=0.7, preservation_weight=1.3)
    shaken(student)
    pairs = method.batch(0)
    concept, anchor = (method.states(student, tokens) for tokens in (pairs.concept, pairs.anchor))
    fooled = mean_of(bce(judged(method, concept), 0), pairs.concept.mask)
    now, before = anchor.detach().double().numpy(), pairs.held.double().numpy()
    cosine = (now * before).sum(-1) / np.linalg.norm(now, axis=-1) / np.linalg.norm(before, axis=-1)
    kept = mean_of(1 - cosine, pairs.anchor.mask)
    assert kept > 1e-3
    assert method.loss(student, pairs).item() == pytest.approx(0.7 * fooled + 1.3 * kept, rel=1e-5)
    expected = mean_of(bce(judged(method, concept), 1), pairs.concept.mask)
    expected += mean_of(bce(judged(method, anchor), 0), pairs.anchor.mask)
    assert method.discriminator_loss(concept, anchor, pairs).item() == pytest.approx(expected, rel=1e-5)


def test_the_discriminator_takes_one_step_of_adamw_before_each_of_the_encoders(prepare: Prepare) -> None:
    method, student = prepare("tea", discriminator_learning_rate=1e-2, weight_decay=0.1)
    before = [value.detach().clone() for value in method.discriminator.parameters()]
    pairs = method.batch(0)
    with torch.no_grad():
        states = [method.states(student, tokens) for tokens in (pairs.concept, pairs.anchor)]
    gradients = torch.autograd.grad(method.discriminator_loss(*states, pairs), list(method.discriminator.parameters()))
    method.before_step(0)
    for value, old, gradient in zip(method.discriminator.parameters(), before, gradients, strict=True):
        # AdamW's first step (arXiv 1711.05101): decay, then the gradient over its own size
        expected = old * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(value.detach(), expected, atol=1e-5, rtol=1e-4)


def test_a_round_shows_every_pair_once(prepare: Prepare) -> None:
    method, _ = prepare("tea", "cat", "dog")  # four pairs each
    shown = [tuple(row.tolist()) for index in range(4) for row in method.batch(index).concept.ids]
    assert len(set(shown)) == len(shown) == 8
