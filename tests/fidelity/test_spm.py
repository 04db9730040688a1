"""SPM against its paper: the erasing term's signs, latent anchors, and membranes that are nothing when off."""

from typing import Any

import pytest
import torch

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text_encoding import encode_prompts
from efface.train.methods.spm import latent_anchor
from efface.train.seeds import generator


@torch.no_grad()
def trained_up(spm: Any) -> None:
    for index, adapter in enumerate(spm.adapters.layers.values()):
        adapter.up += 0.1 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(index))


@torch.no_grad()
def test_without_training_the_membranes_are_bitwise_the_base(prepare: Any, tiny_base: Base) -> None:
    spm, student = prepare("spm")
    batch = spm.batch(0)
    cat = encode_prompts(tiny_base, ["a cat"]).expand(len(batch.state.latents))
    predicted = student(batch.state.latents, batch.state.timestep, cat)
    assert torch.equal(predicted, tiny_base.denoiser(batch.state.latents, batch.state.timestep, cat))


@torch.no_grad()
@pytest.mark.parametrize("anchors", ["code", "paper"])
def test_the_loss_is_both_terms_with_lambda(anchors: str, prepare: Any, tiny_base: Base) -> None:
    spm, student = prepare("spm", eta=1.5, anchor_weight=7.0, anchors=anchors, anchor_count=4)
    trained_up(spm)
    batch = spm.batch(2)
    at = (batch.state.latents, batch.state.timestep)
    cat, empty = (encode_prompts(tiny_base, [prompt]) for prompt in ("a cat", ""))
    own, uncond = (tiny_base.denoiser(*at, prompt).double() for prompt in (cat, empty))
    erase = (student(*at, cat).double() - (uncond - 1.5 * (own - uncond))).square().mean()
    rows = list(batch.anchors)
    kept = [(student(*at, row).double() - tiny_base.denoiser(*at, row).double()).square().mean() for row in rows]
    assert len(rows) == 4
    assert float(spm.loss(student, batch)) == pytest.approx(float(erase + 7.0 * torch.stack(kept).mean()), rel=1e-4)
    unconditional = [torch.equal(row.encoder_hidden_states, empty.encoder_hidden_states) for row in rows]
    assert sum(unconditional) == (2 if anchors == "code" else 0)


def test_an_anchor_has_the_concepts_norm_times_a_number_around_one_and_no_direction_of_it() -> None:
    concept = Conditioning(torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(0)) * 3)
    drawn = [latent_anchor(concept, generator(0, index)).encoder_hidden_states for index in range(20)]
    ratios = [float(one.norm() / concept.encoder_hidden_states.norm()) for one in drawn]
    assert 0.8 <= min(ratios) < 0.9 and 1.1 < max(ratios) <= 1.2
    flat = concept.encoder_hidden_states.flatten()
    assert max(abs(float(torch.cosine_similarity(one.flatten(), flat, dim=0))) for one in drawn) < 0.02


@torch.no_grad()
def test_trajectories_are_the_adapted_models_and_never_stop_before_the_first_step(prepare: Any) -> None:
    spm, _ = prepare("spm")
    before = [spm.batch(index) for index in range(6)]
    assert {int(batch.state.timestep) for batch in before} == {334, 1}  # of 667, 334 and 1
    trained_up(spm)
    moved = [not torch.allclose(spm.batch(index).state.latents, before[index].state.latents) for index in range(6)]
    assert all(moved)
