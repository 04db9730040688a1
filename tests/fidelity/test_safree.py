"""SAFREE against its paper, derived in numpy and fp64, and against numbers of the authors' code."""

import numpy as np
import pytest
import torch

from efface.models.base import Base
from efface.models.hooks.safree import (
    Safree,
    SafreeConfig,
    filtered_steps,
    is_trigger,
    re_attention,
    span_projection,
)
from efface.models.text.text_encoding import encode_ids, token_ids

PHRASES = ("a cat", "kitty")
PROMPT = "a cat on it"


def projector(rows: np.ndarray) -> np.ndarray:
    q, _ = np.linalg.qr(rows.T)
    return q @ q.T


def test_a_span_is_projected_on_and_its_projection_is_idempotent() -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(span_projection(rows).numpy(), projector(rows.double().numpy()), atol=1e-6)
    dependent = torch.cat([rows, rows.sum(0, keepdim=True)])
    np.testing.assert_allclose(span_projection(dependent).numpy(), projector(rows.double().numpy()), atol=1e-5)


@pytest.mark.parametrize(
    ("distances", "alpha", "triggers"),
    [
        ([1.0, 1.0, 2.0], 0.01, [False, False, True]),  # without it the prompt is further away
        ([1.0, 1.0, 1.0], 0.0, [True, True, True]),  # not nearer than the others
        ([1.0, 1.0, 1.0], 0.01, [False, False, False]),
        ([3.0], 0.01, [True]),  # the mean of no others
    ],
)
def test_a_token_is_a_trigger_where_the_prompt_without_it_is_further_away(
    distances: list[float], alpha: float, triggers: list[bool]
) -> None:
    assert is_trigger(torch.tensor(distances), alpha).tolist() == triggers


@pytest.mark.parametrize(
    ("similarity", "steps"), [(1.0, 0), (1 - 0.5333, 5), (0.0, 10), (1 - 0.55, round(10 / (1 + np.exp(-5 * 0.167))))]
)
def test_the_steps_rise_with_what_the_projection_changes(similarity: float, steps: int) -> None:
    assert filtered_steps(torch.tensor(similarity), 10, 2.5, 5.333) == steps


def test_a_low_frequency_above_the_originals_is_scaled_and_the_rest_stays() -> None:
    rng = np.random.default_rng(0)
    none, filtered, original = rng.normal(size=(3, 1, 2, 4, 6))
    found = re_attention(torch.tensor(np.concatenate([none, filtered, original])).float(), 0.2).double().numpy()
    u, v = np.fft.fft2(filtered), np.fft.fft2(original)
    for i in (-1, 0):  # the frequencies around none, -1 and 0 in both directions
        for j in (-1, 0):
            above = u[..., i, j].real > v[..., i, j].real
            u[..., i, j] = np.where(above, 0.2 * u[..., i, j], u[..., i, j])
    np.testing.assert_allclose(found[1], np.fft.ifft2(u).real[0], atol=1e-6)
    np.testing.assert_allclose(found[[0, 2]], np.concatenate([none, original]), atol=1e-6)
    assert np.abs(found[1] - filtered[0]).max() > 0.05


@torch.no_grad()
def encoded(base: Base, *prompts: str, masked: int | None = None) -> np.ndarray:
    """(B, 77, D), fp64; with one position masked."""
    ids = token_ids(base, list(prompts))
    if masked is not None:
        ids[:, masked] = 0
    return encode_ids(base.text_encoder, ids).double().numpy()


def length(base: Base, prompt: str) -> int:
    """Tokens, without those of begin and end."""
    return len(base.tokenizer(prompt, add_special_tokens=False).input_ids)


@torch.no_grad()
def test_a_prompts_triggers_are_projected_and_its_steps_counted(tiny_base: Base) -> None:
    config = SafreeConfig(prompts=PHRASES, slope=0.2)  # of random weights all is alike: a flat sigmoid
    found = Safree(tiny_base, config).filter(PROMPT)
    count = length(tiny_base, PROMPT)
    phrases = np.stack([encoded(tiny_base, phrase)[0, length(tiny_base, phrase) + 1] for phrase in PHRASES])
    own = np.stack([encoded(tiny_base, PROMPT, masked=i)[0, count + 1] for i in range(1, count + 1)])
    off = np.eye(own.shape[1]) - projector(phrases)
    distances = np.linalg.norm(own @ off, axis=1)
    embedding = encoded(tiny_base, PROMPT)[0]
    projected = embedding @ projector(own) @ off  # both are symmetric
    expected = embedding.copy()
    for i, distance in enumerate(distances):
        if not distance < 1.01 * np.delete(distances, i).mean():
            expected[i + 1] = projected[i + 1]
    np.testing.assert_allclose(found.embedding[0].numpy(), expected, atol=1e-4)
    assert np.abs(expected - embedding).max() > 0.1, "some token is a trigger"
    a, b = embedding[: count + 2], projected[: count + 2]
    mean = np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    assert found.last_step == round(10 / (1 + np.exp(-2 * 0.2 * (10 * (1 - mean) - 5.333))))
    assert 0 < found.last_step < 10


def test_an_empty_prompt_is_left_as_it_is(tiny_base: Base) -> None:
    found = Safree(tiny_base, SafreeConfig(prompts=PHRASES)).filter("")
    np.testing.assert_array_equal(found.embedding.numpy(), encoded(tiny_base, "").astype(np.float32))
    assert found.last_step == -1


def test_without_self_validation_every_step_is_filtered(tiny_base: Base) -> None:
    assert Safree(tiny_base, SafreeConfig(prompts=PHRASES, self_validation=False)).filter(PROMPT).last_step > 1000
