"""S-GRACE's losses, derived in numpy and fp64, and its adversary's rounds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import encode_ids, encode_prompts, token_ids
from efface.models.text_encoder import TextEncoder
from efface.train.soft_prompts import SoftPrompts, read_state

Prepare = Callable[..., tuple[Any, Any]]


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_soft_prompts_start_as_what_their_words_are(tiny_base: Base) -> None:
    encoder = TextEncoder(tiny_base.text_encoder)
    texts = ["a cat", "a dog, a house"]
    prompts = SoftPrompts.of(tiny_base, texts)
    found = encoder(prompts.ids, prompts.embeddings)
    torch.testing.assert_close(found, encode_prompts(tiny_base, texts).encoder_hidden_states)
    torch.testing.assert_close(encoder(prompts.ids), found), "the hook is gone again"
    assert prompts.ids[[0, 1], prompts.ends].tolist() == [tiny_base.tokenizer.eos_token_id] * 2


def test_the_loss_is_the_sum_of_its_four_terms(prepare: Prepare, shaken: Callable[[Any], None]) -> None:
    method, student = prepare("sgrace", similarity_weight=1.2, parameter_weight=0.3, anchor_weight=0.9)
    method.before_step(0)
    before = {name: array(value).copy() for name, value in method.trained(student).items()}
    shaken(student)
    ids, held = method.batch(0)
    z = method.prompts
    f = array(student(z.ids, z.embeddings))[range(2), z.ends.numpy()]
    away = 1 + cosines(f, array(method.target)).mean()
    same = 1 - cosines(f, array(method.before)).mean()
    moved = sum(np.abs(array(value) - before[name]).mean() for name, value in method.trained(student).items())
    kept = np.mean((array(student(ids)) - array(held)) ** 2)
    assert min(away, same, moved, kept) > 1e-4
    expected = away + 1.2 * same + 0.3 * moved + 0.9 * kept
    assert method.loss(student, (ids, held)).item() == pytest.approx(expected, rel=1e-5)


def test_the_state_is_that_of_the_end_or_the_mean_from_there_on() -> None:
    hidden = torch.arange(12.0).view(1, 6, 2).repeat(2, 1, 1)
    ends = torch.tensor([4, 2])
    assert read_state(hidden, ends, "end").tolist() == [[8.0, 9.0], [4.0, 5.0]]
    assert read_state(hidden, ends, "padding").tolist() == [[9.0, 10.0], [7.0, 8.0]]


def test_the_adversary_steps_along_the_sign_of_the_papers_gradient(prepare: Prepare, tiny_base: Base) -> None:
    method, student = prepare("sgrace")
    adversary, start = method.adversary, SoftPrompts.of(tiny_base, ["a cat", "kitty"])
    row = 1

    def objective(embeddings: Tensor) -> Tensor:
        hidden = student(start.ids[row : row + 1], embeddings)
        eps = tiny_base.denoiser(adversary.latents, adversary.timestep, Conditioning(hidden))
        f = hidden[0, start.ends[row]]
        near = (f * method.target[0]).sum() / f.norm() / method.target.norm()
        return (eps - adversary.noise).square().mean() + 0.1 * (1 - near)

    found = adversary.run(student, start, 1, 5e-3)
    change = found.embeddings[row] - start.embeddings[row]
    point, end = start.embeddings[row : row + 1], int(start.ends[row])
    for position, channel in ((1, 0), (1, 3), (end - 1, 2), (end - 1, 5)):  # by finite differences
        nudge = torch.zeros_like(point)
        nudge[0, position, channel] = 1e-2
        with torch.no_grad():
            slope = float(objective(point + nudge) - objective(point - nudge))
        assert change[position, channel].item() == pytest.approx(-5e-3 * np.sign(slope), rel=1e-3)
    assert not change[0].any() and not change[end:].any(), "begin, end and padding stay"
    assert not any(value.grad is not None for value in student.module.parameters())


def test_a_round_keeps_its_prompts_and_the_next_goes_on_from_them(prepare: Prepare) -> None:
    method, _ = prepare("sgrace", redraw=0.0, adversary_steps=0)
    seen = []
    for step in range(5):  # rounds of two
        method.before_step(step)
        seen.append(method.prompts.embeddings.clone())
    assert all(torch.equal(seen[0], later) for later in seen[1:])
    moving, _ = prepare("sgrace", redraw=0.0, adversary_steps=2)
    for step, new_round in enumerate((True, False, True, False)):
        before = moving.prompts
        moving.before_step(step)
        assert (moving.prompts is not before) == new_round
    drawn, _ = prepare("sgrace", redraw=1.0, adversary_steps=0)
    drawn.before_step(0)
    first = drawn.prompts.ids
    drawn.before_step(2)
    assert not torch.equal(first, drawn.prompts.ids)


def test_the_words_that_stay_are_the_frozen_encoders_of_its_templates(prepare: Prepare, tiny_base: Base) -> None:
    method, _ = prepare("sgrace")
    ids, held = method.batch(3)
    torch.testing.assert_close(held, encode_ids(tiny_base.text_encoder, ids))
    words, openings = ("a house", "a boat", "a tree"), ("a photo of", "a picture of", "a image of")
    texts = [f"{opening} {word}" for word in words for opening in openings]
    known = {tuple(row.tolist()) for row in token_ids(tiny_base, texts)}
    assert len(ids) == 2 and {tuple(row.tolist()) for row in ids} <= known


def test_the_state_is_as_noisy_as_its_timestep_says(prepare: Prepare, tiny_base: Base) -> None:
    method, _ = prepare("sgrace", denoising_steps=20, timesteps=(0.95, 1.0))
    # DDIM's first of twenty timesteps, with an offset of one, is 951: nothing is denoised yet
    assert int(method.adversary.timestep) == 951
    torch.testing.assert_close(method.adversary.latents, method.adversary.noise)
