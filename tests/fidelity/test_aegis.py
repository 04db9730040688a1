"""AEGIS against its formulas: the target that an adversary makes worst, and gradients that agree."""

from typing import Any

import numpy as np
import pytest
import torch

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import encode_ids
from efface.train.methods.aegis import counterweight


def encoded(base: Base, token: torch.Tensor) -> Conditioning:
    """'a cat' behind a token's embedding: BOS, the token, a, c, a, t, as the text encoder itself reads them."""
    ids = base.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    words = base.text_encoder.get_input_embeddings()(ids)
    embeddings = torch.cat([words[:, :1], token[None], words[:, 1:76]], dim=1)
    shifted = torch.cat([ids[:, :1], torch.zeros_like(ids[:, :1]), ids[:, 1:76]], dim=1)
    handle = base.text_encoder.get_input_embeddings().register_forward_hook(lambda *_: embeddings)
    try:
        return Conditioning(encode_ids(base.text_encoder, shifted))
    finally:
        handle.remove()


def test_the_target_is_away_from_the_adversarys_prompt_and_the_loss_holds_the_start(
    prepare: Any, shaken: Any, tiny_base: Base
) -> None:
    aegis, student = prepare("aegis", eta=1.5, distance_weight=0.02, conflict=False)
    before = {name: value.detach().double().clone() for name, value in aegis.trained(student).items()}
    shaken(student)
    with torch.no_grad():
        batch = aegis.batch(1)
        rollout, token = batch.rollout, aegis.adversaries["0"].value
        at = (rollout.latents, rollout.timestep)
        empty = Conditioning(aegis.rollouts.uncond.encoder_hidden_states)
        worst, uncond = (tiny_base.denoiser(*at, each).double() for each in (encoded(tiny_base, token), empty))
        erase = (student(*at, rollout.conditioning).double() - (uncond - 1.5 * (worst - uncond))).square().mean()
        away = sum((value.double() - before[name]).square().sum() for name, value in aegis.trained(student).items())
        assert float(aegis.loss(student, batch)) == pytest.approx(float(erase + 0.02 / 2 * away), rel=1e-4)


def test_before_a_step_the_adversary_goes_along_the_sign_of_the_losss_gradient(
    prepare: Any, shaken: Any, tiny_base: Base
) -> None:
    aegis, student = prepare("aegis", adversary_rate=1e-3)
    shaken(student)
    aegis.weights = [(value, value.detach().clone()) for value, _ in aegis.weights]  # the first term alone
    start = aegis.adversaries["0"].value.detach().clone()

    def loss(token: torch.Tensor) -> float:
        aegis.adversaries["0"].value.data = token
        with torch.no_grad():
            batch = aegis.batch(0)
            predicted = student(batch.rollout.latents, batch.rollout.timestep, batch.rollout.conditioning)
            return float((predicted.double() - batch.rollout.target.double()).square().mean())

    slopes = []
    for place in range(6):
        nudge = torch.zeros_like(start)
        nudge[0, place] = 0.05
        slopes.append(loss(start + nudge) - loss(start - nudge))
    aegis.adversaries["0"].value.data = start.clone()
    aegis.before_step(0)
    moved = (aegis.adversaries["0"].value.detach() - start)[0].numpy()
    assert np.abs(moved) == pytest.approx(1e-3, rel=1e-2)
    steep = np.abs(slopes) > 0.2 * np.abs(slopes).max()
    moved = moved[: len(slopes)]
    assert steep.sum() > 1 and (np.sign(moved)[steep] == np.sign(slopes)[steep]).all()


@pytest.mark.parametrize("omega", [0.0, 0.4, 1.0])
def test_what_goes_against_the_way_back_is_taken_out_of_the_gradient(omega: float) -> None:
    """g - omega <g, h> / ||h||^2 h + h by hand, of two tensors at once, where they disagree and where they do not."""
    rng = np.random.default_rng(0)
    h = [rng.normal(size=(2, 3)), rng.normal(size=4)]
    for sign in (-1, 1):
        g = [sign * each + 0.1 * rng.normal(size=each.shape) for each in h]
        dot = sum(float((a * b).sum()) for a, b in zip(g, h, strict=True))
        square = sum(float((b * b).sum()) for b in h)
        by_hand = [a - (omega * dot / square * b if dot < 0 else 0) + b for a, b in zip(g, h, strict=True)]
        more = float(counterweight([torch.tensor(a) for a in g], [torch.tensor(b) for b in h]))
        ours = [a + (1 + omega * more) * b for a, b in zip(g, h, strict=True)]
        for one, other in zip(ours, by_hand, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
    zero = [torch.zeros(3, dtype=torch.float64)]
    assert float(counterweight([torch.ones(3, dtype=torch.float64)], zero)) == 0.0


def test_the_losss_own_gradient_is_that_sum(prepare: Any) -> None:
    aegis, student = prepare("aegis", steps=3, distance_weight=0.5)
    values = [value.requires_grad_(True) for value in aegis.trained(student).values()]
    with torch.no_grad():
        batch = aegis.batch(1)
    assert batch.omega == 0.5  # the second of three steps

    def erase() -> torch.Tensor:
        predicted = student(batch.rollout.latents, batch.rollout.timestep, batch.rollout.conditioning)
        return (predicted - batch.rollout.target).square().mean()

    slopes = torch.autograd.grad(erase(), values)
    with torch.no_grad():  # a step down, so that the way back is up
        for value, slope in zip(values, slopes, strict=True):
            value -= 1e-3 * slope
    g = torch.autograd.grad(erase(), values)
    pulls = [0.5 * (value - start).detach() for value, start in aegis.weights]
    dot = sum(float((a * b).double().sum()) for a, b in zip(g, pulls, strict=True))
    square = sum(float(b.double().square().sum()) for b in pulls)
    assert dot < 0
    found = torch.autograd.grad(aegis.loss(student, batch), values)
    for one, a, b in zip(found, g, pulls, strict=True):
        torch.testing.assert_close(one, a + b - 0.5 * dot / square * b, rtol=1e-4, atol=1e-8)
