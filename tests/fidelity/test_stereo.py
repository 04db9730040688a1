"""STEREO against its paper: the rounds of the search, and what is erased once for all that they found."""

from typing import Any

import numpy as np
import pytest
import torch

from efface.models.base import Base
from efface.models.text.text_encoding import encode_prompts
from efface.train import stereo_search
from efface.train.data.latents import Posterior
from efface.train.methods.stereo import EncodedESD, STEREOConfig, compositional_target
from efface.train.run_job import run_job
from efface.train.stereo_search import share_of


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 4, 3, 3))


def test_the_target_has_the_positives_direction_and_goes_against_the_mean_of_the_negatives() -> None:
    uncond, positive, *negatives = (numbers(seed) for seed in range(5))
    by_hand = uncond + 1.0 * (positive - uncond) - 3.0 * sum(each - uncond for each in negatives) / 3
    found = compositional_target(*map(torch.tensor, (uncond, positive)), list(map(torch.tensor, negatives)), 1.0, 3.0)
    np.testing.assert_allclose(found.numpy(), by_hand, rtol=1e-12)


def test_the_loss_is_the_students_error_at_that_target_under_the_negative(
    prepare: Any, shaken: Any, tiny_base: Base
) -> None:
    stereo, student = prepare("stereo", anchors=["{} in a house"], positive_scale=0.5, negative_scale=2.0)
    shaken(student)
    with torch.no_grad():
        batch = stereo.batch(0)
        at = (batch.state.latents, batch.state.timestep)
        cat, empty, anchor = (encode_prompts(tiny_base, [text]) for text in ("a cat", "", "a cat in a house"))
        negatives = [cat, stereo.negatives[1]]
        assert torch.equal(stereo.negatives[0].encoder_hidden_states, cat.encoder_hidden_states)
        uncond, positive, *away = (tiny_base.denoiser(*at, each).double() for each in (empty, anchor, *negatives))
        target = uncond + 0.5 * (positive - uncond) - 2.0 * ((away[0] + away[1]) / 2 - uncond)
        conditioning = next(
            each
            for each in negatives
            if torch.equal(each[0].encoder_hidden_states, batch.conditioning[0].encoder_hidden_states)
        )
        expected = (student(*at, conditioning).double() - target).square().mean()
        assert float(stereo.loss(student, batch)) == pytest.approx(float(expected), rel=1e-4)


def test_every_negative_comes_once_in_a_round_of_them(prepare: Any) -> None:
    stereo, _ = prepare("stereo", rounds=2)
    with torch.no_grad():
        conditioning = [stereo.batch(index).conditioning.encoder_hidden_states for index in range(6)]
    for first in (0, 3):
        seen = {
            next(k for k in range(3) if torch.equal(stereo.negatives[k].encoder_hidden_states, each))
            for each in conditioning[first : first + 3]
        }
        assert seen == {0, 1, 2}


def test_each_round_erases_what_was_found_last_on_the_model_before_and_looks_on_the_erased_one(
    prepare: Any, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    erased: list[tuple[Any, Any]] = []
    sought: list[tuple[Any, Any]] = []
    esd_prepare, invert = EncodedESD.prepare, stereo_search.invert

    def preparing(self: EncodedESD, task: Any, student: Any) -> None:
        erased.append((task.base.unet, self.encoded))
        esd_prepare(self, task, student)

    def inverting(base: Base, model: Any, images: Any, *rest: Any) -> torch.Tensor:
        sought.append((model.module, images.mean))
        return invert(base, model, images, *rest)

    monkeypatch.setattr(EncodedESD, "prepare", preparing)
    monkeypatch.setattr(stereo_search, "invert", inverting)
    before = {name: value.clone() for name, value in tiny_base.tensors().items()}
    stereo, student = prepare("stereo", rounds=2, images=2, search_learning_rate=1e-2)
    assert erased[0][0] is tiny_base.unet and erased[1][0] is sought[0][0] is not tiny_base.unet
    cat = encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states
    assert torch.equal(erased[0][1].encoder_hidden_states, cat)
    assert torch.equal(erased[1][1].encoder_hidden_states, stereo.negatives[1].encoder_hidden_states)
    assert not torch.equal(sought[0][1], sought[1][1]), "each round has images of its own"
    moved = [
        dict(module.named_parameters())["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
        for module, _ in sought
    ]
    assert not torch.equal(moved[0], moved[1])
    # the second stage begins at the original, which nothing has touched
    own = dict(student.module.named_parameters())
    assert all(
        torch.equal(own[name.removeprefix("unet.")], value)
        for name, value in before.items()
        if name.startswith("unet.")
    )
    assert all(torch.equal(tiny_base.tensors()[name], value) for name, value in before.items())


def test_in_a_round_the_concept_becomes_the_empty_prompt() -> None:
    """The authors' negative guidance is eps_c - (g - 1) (eps_c - eps_0): with their g of 2, ESD with eta 0."""
    concept, uncond = numbers(0), numbers(1)
    np.testing.assert_allclose(
        concept - (2 - 1) * (concept - uncond), uncond - STEREOConfig().search_eta * (concept - uncond), atol=1e-12
    )


def test_a_token_that_was_found_is_not_sought_again(
    prepare: Any, tiny_base: Base, quick_job: Any, concept_set: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run_job(quick_job("stereo"), tiny_base, concept_set, cache=tmp_path)
    assert len(list(tmp_path.glob("token-*"))) == 1
    monkeypatch.setattr(stereo_search, "invert", lambda *_: pytest.fail("sought again"))
    again, _ = run_job(quick_job("stereo"), tiny_base, concept_set, cache=tmp_path)
    assert again.id == first.id


def test_images_are_shared_among_the_rounds() -> None:
    images = Posterior(torch.arange(7.0).view(7, 1, 1, 1), torch.ones(7, 1, 1, 1), 1.0)
    assert [share_of(images, turn, 3).mean.flatten().tolist() for turn in range(3)] == [[0, 1], [2, 3], [4, 5]]
    one = Posterior(images.mean[:1], images.std[:1], 1.0)
    assert share_of(one, 2, 3).mean.flatten().tolist() == [0.0]
