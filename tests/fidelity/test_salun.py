"""SalUn against its paper: both terms with their signs, the saliency's loss, and weights that keep their bits."""

from typing import Any

import numpy as np
import pytest
import torch

from efface.concepts.concept import ConceptSet
from efface.models.base import Base
from efface.models.text.text_encoding import encode_prompts
from efface.train.methods.salun import saliency_loss
from efface.train.run_job import run_job
from efface.train.trainer.weight_mask import top_share


def arrays(*shape: int) -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(seed).normal(size=shape) for seed in range(3))


def test_the_saliencys_loss_is_minus_the_squared_error_of_the_guided_prediction() -> None:
    concept, uncond, noise = arrays(2, 4, 3, 3)
    by_hand = -np.mean((8.5 * concept - 7.5 * uncond - noise) ** 2)
    assert float(saliency_loss(*map(torch.tensor, (concept, uncond, noise)), 7.5)) == pytest.approx(by_hand, rel=1e-12)


@torch.no_grad()
def test_the_loss_is_both_terms_with_alpha(prepare: Any, shaken: Any, tiny_base: Base) -> None:
    salun, student = prepare("salun", alpha=0.3)
    shaken(student)
    batch = salun.batch(1)
    concept, pet = (encode_prompts(tiny_base, [f"a photo of {what}"]).expand(2) for what in ("a cat", "a pet"))
    forget, remain = batch.forget, batch.remain
    towards = student(forget.latents, forget.timesteps, pet).double()
    torch.testing.assert_close(batch.target.double(), towards, rtol=1e-5, atol=1e-6)
    first = (student(forget.latents, forget.timesteps, concept).double() - towards).square().mean()
    second = (student(remain.latents, remain.timesteps, pet).double() - remain.truth.double()).square().mean()
    assert float(salun.loss(student, batch)) == pytest.approx(float(first + 0.3 * second), rel=1e-5)


@torch.no_grad()
def test_what_must_stay_is_shown_under_its_own_prompts(prepare: Any, tiny_base: Base) -> None:
    salun, _ = prepare("salun", remain="retained", remain_images=4, batch_size=4)
    kept = encode_prompts(tiny_base, ["a photo of a dog", "a photo of a fox"]).encoder_hidden_states
    rows = salun.batch(0).kept.encoder_hidden_states
    assert sorted(int(torch.equal(row, kept[1])) for row in rows) == [0, 0, 1, 1]
    assert all(torch.equal(row, kept[0]) or torch.equal(row, kept[1]) for row in rows)


def test_the_share_is_of_all_entries_together_and_never_one_without_a_gradient() -> None:
    scores = [torch.tensor([5.0, 1.0, 0.0]), torch.tensor([[4.0, 3.0], [2.0, 0.0]])]
    half = top_share(scores, 0.5)  # of seven entries three
    assert half[0].tolist() == [True, False, False] and half[1].tolist() == [[True, True], [False, False]]
    assert sum(int(mask.sum()) for mask in top_share(scores, 1.0)) == 5


def test_the_mask_is_the_largest_gradient_of_the_saliencys_loss(prepare: Any) -> None:
    """The gradient is that of finite differences in one weight that is selected and in one that is not."""
    from efface.train.trainer.weight_mask import selected_entries

    salun, student = prepare("salun", select_batches=2)
    trained = {name: value.requires_grad_(True) for name, value in salun.trained(student).items()}
    masks = selected_entries(salun, student, trained)
    share = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert share == pytest.approx(0.5, abs=0.01)

    def total() -> float:
        with torch.no_grad():
            return sum(float(salun.selection_loss(student, index)) for index in range(2))

    def slope(value: torch.Tensor, entry: int) -> float:
        with torch.no_grad():
            flat, step = value.view(-1), 3e-2
            here = float(flat[entry])
            flat[entry] = here + step
            above = total()
            flat[entry] = here - step
            below = total()
            flat[entry] = here
        return abs(above - below) / (2 * step)

    name = "unet.conv_out.bias"
    inside = [slope(trained[name], int(entry)) for entry in masks[name].flatten().nonzero()[:, 0]]
    quiet = next(key for key, mask in masks.items() if not mask.flatten()[0] and "attn2.to_q" in key)
    assert inside and min(inside) > slope(trained[quiet], 0)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_weights_outside_of_the_mask_keep_their_bits_whatever_decays(
    optimizer: str, quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    job = quick_job("salun", optimizer=optimizer, weight_decay=0.1, select_share=0.25)
    delta, _ = run_job(job, tiny_base, concept_set)
    originals = tiny_base.originals()
    changed = sum(int((value != originals[name]).sum()) for name, value in delta.tensors.items())
    count = sum(value.numel() for value in delta.tensors.values())
    assert 0.15 < changed / count <= 0.25
