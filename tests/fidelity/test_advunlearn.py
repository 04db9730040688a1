"""AdvUnlearn against its paper: both terms of the loss, the frozen model's states, and the adversary's tokens."""

from typing import Any

import pytest
import torch

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import encode_prompts
from efface.train.seeds import generator


def test_the_loss_is_esds_through_the_text_encoder_and_what_holds_other_prompts(
    prepare: Any, shaken: Any, tiny_base: Base
) -> None:
    method, student = prepare("advunlearn", eta=1.5, retain_weight=0.3, batch_size=2)
    shaken(student)
    with torch.no_grad():
        batch = method.batch(0)
        cat, empty = (encode_prompts(tiny_base, [prompt]).expand(2) for prompt in ("a cat", ""))
        at = (batch.states.latents[:2], batch.states.timestep)
        own, uncond = (tiny_base.denoiser(*at, each).double() for each in (cat, empty))
        ids = tiny_base.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
        said = tiny_base.denoiser(*at, Conditioning(student(ids)).expand(2)).double()
        erase = (said - (uncond - 1.5 * (own - uncond))).square().mean()
        rest = (batch.states.latents[2:], batch.states.timestep)
        kept = tiny_base.denoiser(*rest, Conditioning(student(batch.retained))).double()
        frozen = tiny_base.text_encoder(batch.retained, attention_mask=None).last_hidden_state
        was = tiny_base.denoiser(*rest, Conditioning(frozen)).double()
        retain = (kept - was).square().mean()
        assert float(erase) > 1e-6 and float(retain) > 1e-6
        assert float(method.loss(student, batch)) == pytest.approx(float(erase + 0.3 * retain), rel=1e-4)


def test_states_are_the_frozen_models_under_the_frozen_encoding(prepare: Any, shaken: Any) -> None:
    method, student = prepare("advunlearn")
    with torch.no_grad():
        before = method.batch(3)
        shaken(student)
        after = method.batch(3)
    assert torch.equal(before.states.latents, after.states.latents) and torch.equal(before.target, after.target)
    assert len(before.states.latents) == 3 and len(before.retained) == 2


@pytest.mark.parametrize("fast", [False, True])
def test_tokens_are_sought_that_bring_the_concept_back(fast: bool, prepare: Any, shaken: Any, tiny_base: Base) -> None:
    """A single step of Adam from vocabulary: every number moves by its rate, against finite differences' sign."""
    method, student = prepare("advunlearn", clean_steps=0, adversary_steps=1, adversary_rate=1e-3, fast=fast)
    shaken(student)
    still, _ = prepare("advunlearn", clean_steps=0, adversary_steps=0)
    still.before_step(0)
    start = still.found
    table = tiny_base.text_encoder.get_input_embeddings().weight
    assert start.shape == (1, table.shape[1]) and (table == start).all(dim=1).any()
    method.before_step(0)
    moved = (method.found - start)[0]
    with torch.no_grad():
        state = method.rollouts.run(
            tiny_base.denoiser,
            method.rollouts.start(generator(0, "advunlearn", "search", 0, 0)),
            method.concept,
        )
        cat = encode_prompts(tiny_base, ["a cat"])
        own = tiny_base.denoiser(state.latents, state.timestep, cat).double()

    def error(token: torch.Tensor) -> float:
        ids = tiny_base.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
        words = student.embed(ids)
        embeddings = torch.cat([words[:, :1], token[None], words[:, 1:76]], dim=1)
        ids = torch.cat([ids[:, :1], torch.zeros_like(ids[:, :1]), ids[:, 1:76]], dim=1)
        with torch.no_grad():
            said = tiny_base.denoiser(state.latents, state.timestep, Conditioning(student(ids, embeddings)))
            return float((said.double() - own).square().mean())

    slopes = []
    for place in range(start.shape[1]):
        nudge = torch.zeros_like(start)
        nudge[0, place] = 0.05
        slopes.append(error(start + nudge) - error(start - nudge))
    slope = torch.tensor(slopes)
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3), rtol=0.05, atol=1e-6)
    steep = slope.abs() > 0.2 * slope.abs().max()
    assert int(steep.sum()) > 2 and torch.equal(moved[steep].sign(), -slope[steep].sign().float())


def test_an_adversary_comes_after_the_clean_steps_every_few_and_goes_on_or_starts_anew(prepare: Any) -> None:
    settings = {"steps": 6, "clean_steps": 2, "adversary_every": 2, "adversary_steps": 1, "adversary_rate": 1e-6}
    for start, near in (("latest", True), ("random", False)):
        method, _ = prepare("advunlearn", **settings, adversary_start=start)
        found = []
        for step in range(6):
            method.before_step(step)
            found.append(method.found)
        assert found[0] is None and found[1] is None and found[2] is not None
        assert found[3] is found[2] and found[4] is not found[3] and found[5] is found[4]
        assert torch.allclose(found[4], found[2], atol=1e-5) == near
