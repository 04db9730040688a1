"""HiRM's loss, derived in numpy and fp64 from the text encoder's own weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from efface.models.base import Base
from efface.models.text.text_encoding import token_ids

Prepare = Callable[..., tuple[Any, Any]]


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def last_attention(base: Base, prompt: str) -> np.ndarray:
    """What the last self-attention gives, (77, D), by CLIP's equations: pre-norm, causal, quick GELU."""
    weights = {name: value.double().numpy() for name, value in base.tensors().items() if name.startswith("text_")}
    config = base.text_encoder.config
    heads, depth = config.num_attention_heads, config.num_hidden_layers

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"text_encoder.{name}.weight"].T + weights[f"text_encoder.{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, weights[f"text_encoder.{name}.weight"], weights[f"text_encoder.{name}.bias"])

    ids = token_ids(base, [prompt])[0].numpy()
    hidden = weights["text_encoder.embeddings.token_embedding.weight"][ids]
    hidden = hidden + weights["text_encoder.embeddings.position_embedding.weight"]
    for layer in range(depth):
        name = f"encoder.layers.{layer}"
        x = norm(hidden, f"{name}.layer_norm1")
        q, k, v = (
            linear(x, f"{name}.self_attn.{part}_proj").reshape(77, heads, -1).transpose(1, 0, 2) for part in "qkv"
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.where(np.tril(np.ones((77, 77))) > 0, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = ((scores / scores.sum(-1, keepdims=True)) @ v).transpose(1, 0, 2).reshape(77, -1)
        attended = linear(mixed, f"{name}.self_attn.out_proj")
        if layer == depth - 1:
            return attended
        hidden = hidden + attended
        x = linear(norm(hidden, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        hidden = hidden + linear(x / (1 + np.exp(-1.702 * x)), f"{name}.mlp.fc2")
    raise AssertionError


def test_the_loss_is_the_distance_of_the_last_attention_to_a_direction_of_that_norm(
    prepare: Prepare, tiny_base: Base
) -> None:
    method, student = prepare("hirm", norm=50.0)
    batch = method.batch(0)
    direction = batch[1][0].double().numpy()
    assert np.linalg.norm(direction) == pytest.approx(50, rel=1e-5) and (direction >= 0).all()
    expected = np.mean((last_attention(tiny_base, "a cat") - direction) ** 2)
    assert method.loss(student, batch).item() == pytest.approx(expected, rel=1e-5)


def test_only_the_first_layer_gets_a_gradient_and_all_of_its_weights_do(prepare: Prepare) -> None:
    method, student = prepare("hirm")
    trained = method.trained(student)
    for value in trained.values():
        value.requires_grad_(True)
    method.loss(student, method.batch(0)).backward()
    assert all(".layers.0.self_attn." in name or ".layers.0.mlp." in name for name in trained)
    # a bias added to every key changes no attention: its gradient is rounding
    moved = {name for name, value in trained.items() if value.grad is not None and value.grad.abs().max() > 1e-6}
    assert moved >= {name for name in trained if not name.endswith("k_proj.bias")}


def test_several_concepts_have_directions_of_their_own_in_turns(prepare: Prepare, tiny_base: Base) -> None:
    forms, _ = prepare("hirm", templates=["{}", "a photo of {}"])
    (ids, one), (longer, same) = (forms.batch(index) for index in range(2))
    assert torch.equal(one, same) and torch.equal(longer, token_ids(tiny_base, ["a photo of a cat"]))
    assert torch.equal(ids, token_ids(tiny_base, ["a cat"]))
    method, _ = prepare("hirm", "cat", "dog")
    (first, one), (second, other), (again, _) = (method.batch(index) for index in range(3))
    assert torch.equal(first, token_ids(tiny_base, ["a cat"])) and torch.equal(second, token_ids(tiny_base, ["a dog"]))
    assert torch.equal(first, again) and not torch.equal(one, other)
