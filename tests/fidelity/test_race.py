"""RACE against its paper: projected gradient descent on the concept's encoding, and ESD for what it finds."""

from typing import Any

import numpy as np
import pytest
import torch

from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import encode_prompts
from efface.train.method import parse_config


def test_the_first_steps_are_esds_and_the_later_ones_its_loss_for_another_encoding(
    prepare: Any, tiny_base: Base
) -> None:
    race, student = prepare("race", steps=3, clean_steps=2, gradient_accumulation_steps=2, eta=0.7)
    esd, _ = prepare("esd", eta=0.7)
    own = encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states
    with torch.no_grad():
        for index, clean in ((3, True), (4, False)):  # two batches a step
            batch, plain = race.batch(index), esd.batch(index)
            for name in ("latents", "timestep", "target"):
                torch.testing.assert_close(getattr(batch, name), getattr(plain, name))
            assert torch.equal(batch.conditioning.encoder_hidden_states, own) == clean
        cat, empty = (encode_prompts(tiny_base, [prompt]) for prompt in ("a cat", ""))
        concept, uncond = (tiny_base.denoiser(batch.latents, batch.timestep, each).double() for each in (cat, empty))
        predicted = student(batch.latents, batch.timestep, batch.conditioning).double()
        expected = (predicted - (uncond - 0.7 * (concept - uncond))).square().mean()
        assert float(race.loss(student, batch)) == pytest.approx(float(expected), rel=1e-5)


def test_a_step_goes_against_the_gradients_sign_towards_the_noise_within_the_box(prepare: Any, tiny_base: Base) -> None:
    """From the same random point: one step is as long as it may be, in the direction of finite differences."""
    settings = {"steps": 2, "clean_steps": 0, "adversary_radius": 0.1, "adversary_rate": 0.025}
    still, student = prepare("race", **settings, adversary_steps=0)
    moved, _ = prepare("race", **settings, adversary_steps=1)
    with torch.no_grad():
        start, end = (method.batch(0).conditioning.encoder_hidden_states for method in (still, moved))
    own = encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states
    inside = (own - 0.1).clamp(min=own.min()), (own + 0.1).clamp(max=own.max())
    for value in (start, end):
        assert ((value >= inside[0] - 1e-6) & (value <= inside[1] + 1e-6)).all()
    assert float((start - own).std()) == pytest.approx(0.1 / np.sqrt(3), rel=0.1)  # uniform in the box
    rollout, noise = still.batch(0), still.draw(0)[1].noise
    free = ((end - start).abs() - 0.025).abs() < 1e-6
    assert free.float().mean() > 0.7  # the rest was stopped by the box

    def error(encoding: torch.Tensor) -> float:
        with torch.no_grad():
            predicted = student(rollout.latents, rollout.timestep, Conditioning(encoding))
            return float((predicted.double() - noise.double()).square().mean())

    steepest = (end - start).abs() * free
    for place in torch.randperm(start.numel(), generator=torch.Generator().manual_seed(1))[:40].tolist():
        nudge = torch.zeros_like(start).flatten()
        nudge[place] = 0.3
        slope = (error(start + nudge.view_as(start)) - error(start - nudge.view_as(start))) / 0.6
        if steepest.flatten()[place] and abs(slope) > 1e-5:  # less is rounding
            assert np.sign((end - start).flatten()[place].item()) == -np.sign(slope)
    assert error(end) < error(start)


def test_more_steps_bring_the_prediction_nearer_to_the_noise(prepare: Any) -> None:
    errors = []
    for steps in (0, 2, 8):
        race, student = prepare("race", steps=2, clean_steps=0, adversary_steps=steps)
        with torch.no_grad():
            batch, noise = race.batch(1), race.draw(1)[1].noise
            errors.append(float((student(batch.latents, batch.timestep, batch.conditioning) - noise).square().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_an_adversary_that_never_comes_is_refused() -> None:
    with pytest.raises(UserError, match="clean_steps should be less than steps, 5"):
        parse_config("race", {"steps": 5, "clean_steps": 5})
