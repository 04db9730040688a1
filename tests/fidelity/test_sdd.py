"""SDD against its paper: whose trajectories, whose predictions, and the average that is its result."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.models.base import Base
from efface.models.text.text_encoding import encode_prompts
from efface.train.trainer.ema import MovingAverage


@torch.no_grad()
def test_the_target_is_the_students_own_prediction_for_the_empty_prompt(
    prepare: Any, shaken: Any, tiny_base: Base
) -> None:
    sdd, student = prepare("sdd", batch_size=2)
    shaken(student)
    batch = sdd.batch(0)
    cat, empty = (encode_prompts(tiny_base, [prompt]).expand(2) for prompt in ("a cat", ""))
    own = student(batch.state.latents, batch.state.timestep, empty)
    torch.testing.assert_close(batch.target, own)
    frozen = tiny_base.denoiser(batch.state.latents, batch.state.timestep, empty)
    assert not torch.allclose(batch.target, frozen)
    error = student(batch.state.latents, batch.state.timestep, cat).double() - own.double()
    assert float(sdd.loss(student, batch)) == pytest.approx(float((error**2).mean()), rel=1e-5)


def ddim(predict: Any, cond: Any, uncond: Any, noise: Tensor, timesteps: list[int], alphas: Tensor) -> Tensor:
    """The state before the last of these timesteps of deterministic DDIM with guidance 3 (Song et al. 2021, eq. 12)."""
    latents = noise
    for here, there in pairwise(timesteps):
        eps_cond, eps_uncond = predict(latents, here, cond), predict(latents, here, uncond)
        eps = eps_uncond + 3 * (eps_cond - eps_uncond)
        clean = (latents - (1 - alphas[here]).sqrt() * eps) / alphas[here].sqrt()
        latents = alphas[there].sqrt() * clean + (1 - alphas[there]).sqrt() * eps
    return latents


@torch.no_grad()
def test_the_trajectory_is_the_averages_under_all_concepts_together(
    prepare: Any, shaken: Any, tiny_base: Base, alphas_cumprod: Tensor
) -> None:
    sdd, student = prepare("sdd", "cat", "dog", ema_decay=0.9)
    before = {name: value.detach().clone() for name, value in sdd.trained(student).items()}
    shaken(student)
    shaken_values = {name: value.detach().clone() for name, value in sdd.trained(student).items()}
    sdd.after_step(0)
    index = next(index for index in range(100) if int(sdd.batch(index).state.timestep) == 1)
    started = [start := sdd.rollouts.start]
    caught = []
    sdd.rollouts.start = lambda *of: caught.append(start(*of)) or caught[-1]
    batch = sdd.batch(index)
    assert started and all(torch.equal(value, shaken_values[name]) for name, value in sdd.trained(student).items())
    for name, value in sdd.trained(student).items():  # by hand: nine tenths of what was, one of what is
        value.data = 0.9 * before[name] + 0.1 * shaken_values[name]
    both, empty = encode_prompts(tiny_base, ["a cat, a dog"]), encode_prompts(tiny_base, [""])
    expected = ddim(student, both, empty, caught[0].noise, [667, 334, 1], alphas_cumprod)
    torch.testing.assert_close(batch.state.latents, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_concepts_are_asked_for_in_turns(prepare: Any, tiny_base: Base) -> None:
    sdd, _ = prepare("sdd", "cat", "dog")
    cat, dog = encode_prompts(tiny_base, ["a cat", "a dog"]).encoder_hidden_states
    for index in range(4):
        assert torch.equal(sdd.batch(index).conditioning.encoder_hidden_states[0], (cat, dog)[index % 2])


def test_the_average_is_the_recursion_and_is_what_is_saved(prepare: Any) -> None:
    sdd, student = prepare("sdd", ema_decay=0.75)
    name, value = next(iter(sdd.trained(student).items()))
    expected = value.detach().double().clone()
    for step in range(3):
        with torch.no_grad():
            value += 1.0
        sdd.after_step(step)
        expected = 0.75 * expected + 0.25 * value.detach().double()
    torch.testing.assert_close(sdd.saved(student)[name].double(), expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(sdd.saved(student)[name], value)


def test_an_average_in_place_leaves_the_weights_bit_for_bit_even_after_an_error() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    average = MovingAverage({"w": weight}, 0.5)
    with torch.no_grad():
        weight += 2
    with pytest.raises(RuntimeError), average.in_place():
        assert weight.tolist() == [1.0, 2.0]
        raise RuntimeError
    assert weight.tolist() == [3.0, 4.0]
