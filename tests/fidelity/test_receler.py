"""Receler against its paper: erasers, their region, the adversary's prompt, and both terms of the loss."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from efface.concepts.concept import ConceptSet
from efface.errors import UserError
from efface.models.attention_maps import CrossAttentionMaps, concept_region
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.receler_erasers import add_erasers, eraser_parameters, erasers_attached, region_loss
from efface.models.recipe import load_recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.models.text.text_encoding import encode_prompts
from efface.train.run_job import run_job
from efface.train.seeds import generator

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def with_effect(erasers: Any) -> None:
    for index, eraser in enumerate(erasers.values()):
        for part in ("weight", "bias"):
            value = eraser.up.get_parameter(part)
            value += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(index))


@torch.no_grad()
def test_fresh_erasers_are_bitwise_the_base_and_trained_ones_come_off_without_a_trace(tiny_base: Base) -> None:
    prompts = encode_prompts(tiny_base, ["a cat", "a dog"])
    before = tiny_base.denoiser(LATENTS, 500, prompts)
    student = tiny_base.denoiser.copy()
    erasers = add_erasers(student, 4, generator(0, "any"))
    assert len(erasers) == 4 and torch.equal(student(LATENTS, 500, prompts), before)
    with_effect(erasers)
    trained = student(LATENTS, 500, prompts)
    assert not torch.allclose(trained, before)
    with erasers_attached(tiny_base.denoiser, eraser_parameters(erasers)):
        torch.testing.assert_close(tiny_base.denoiser(LATENTS, 500, prompts), trained)
    assert torch.equal(tiny_base.denoiser(LATENTS, 500, prompts), before)


@torch.no_grad()
def test_an_eraser_is_a_bottleneck_with_gelu(tiny_base: Base) -> None:
    eraser = next(iter(add_erasers(tiny_base.denoiser.copy(), 3, generator(0, "any")).values()))
    with_effect({"": eraser})
    x = np.random.default_rng(0).normal(size=(5, eraser.down.in_features))
    down, bias, up, up_bias = (
        value.double().numpy() for value in (eraser.down.weight, eraser.down.bias, eraser.up.weight, eraser.up.bias)
    )
    hidden = x @ down.T + bias
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    np.testing.assert_allclose(eraser(torch.tensor(x).float()).numpy(), hidden @ up.T + up_bias, rtol=1e-4, atol=1e-5)


def test_the_region_is_where_the_mean_attention_to_the_words_passes_the_threshold() -> None:
    """Two layers of 2 x 2 pixels, and one of 4 x 4 that does not count for latents of 8; of three tokens the last."""
    first, second, other = torch.zeros(1, 1, 4, 3), torch.zeros(1, 2, 4, 3), torch.ones(1, 1, 16, 3)
    first[0, 0, :, 2] = torch.tensor([0.2, 0.4, 0.0, 0.6])
    second[0, 0, :, 2] = torch.tensor([0.0, 0.0, 0.0, 0.8])
    second[0, 1, :, 2] = torch.tensor([0.0, 0.0, 0.0, 0.0])
    # means 0.1, 0.2, 0, 0.5; brought to [0, 1]: 0.2, 0.4, 0, 1
    assert concept_region([first, second, other], [2], 4, 8, 0.3).tolist() == [[False, True, False, True]]
    larger = concept_region([first, second, other], [2], 16, 8, 0.3)[0].view(4, 4)
    assert larger.tolist() == [[False, False, True, True]] * 4


def test_the_region_term_is_the_mean_square_of_what_erasers_add_elsewhere() -> None:
    outputs = [torch.arange(8.0).view(1, 4, 2), torch.full((1, 1, 2), 3.0)]
    elsewhere = {4: torch.tensor([[True, False, True, False]]), 1: torch.tensor([[False]])}
    first = ((0 + 1) / 2 + (16 + 25) / 2) / 2
    assert float(region_loss(outputs, elsewhere)) == pytest.approx(first / 2, rel=1e-6)


@torch.no_grad()
def test_the_loss_is_both_terms_on_the_adversarys_prompt(prepare: Any, tiny_base: Base) -> None:
    receler, student = prepare("receler", eta=1.5, region_weight=0.25, batch_size=2)
    with_effect(receler.erasers)
    batch = receler.batch(1)
    at = (batch.scene.state.latents, batch.scene.state.timestep)
    cat, empty = (encode_prompts(tiny_base, [prompt]).expand(2) for prompt in ("a cat", ""))
    own, uncond = (tiny_base.denoiser(*at, prompt).double() for prompt in (cat, empty))
    conditioning = cat.encoder_hidden_states.clone()
    conditioning[:, 5:8] = receler.adversaries["0"].value  # BOS, a, c, a, t: the places after its words
    torch.testing.assert_close(batch.conditioning.encoder_hidden_states, conditioning)
    added: list[torch.Tensor] = []
    for eraser in receler.erasers.values():
        eraser.register_forward_hook(lambda module, inputs, output: added.append(output))
    erase = (student(*at, batch.conditioning).double() - (uncond - 1.5 * (own - uncond))).square().mean()
    region = region_loss(added, batch.scene.elsewhere)
    assert float(region) > 0
    assert float(receler.loss(student, batch)) == pytest.approx(float(erase + 0.25 * region), rel=1e-4)


@torch.no_grad()
def test_where_the_concept_is_comes_from_the_frozen_models_attention_to_its_words(
    prepare: Any, tiny_base: Base
) -> None:
    receler, _ = prepare("receler")
    with_effect(receler.erasers)
    scene = receler.batch(0).scene
    maps = CrossAttentionMaps(tiny_base.denoiser)
    with maps:
        tiny_base.denoiser(scene.state.latents, scene.state.timestep, encode_prompts(tiny_base, ["a cat"]))
    maps.close()
    for pixels, elsewhere in scene.elsewhere.items():
        there = concept_region(list(maps.by_layer.values()), range(1, 5), pixels, 8, 0.1)
        assert torch.equal(elsewhere, ~there)
    assert not tiny_base.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")._forward_hooks


def test_the_adversary_brings_the_concept_back_and_the_erasers_do_not_move_meanwhile(prepare: Any) -> None:
    receler, student = prepare("receler", adversary_steps=12, adversary_weight_decay=0.0)
    with_effect(receler.erasers)
    trained = {name: value.requires_grad_(True) for name, value in receler.trained(student).items()}
    before = {name: value.detach().clone() for name, value in trained.items()}

    def error() -> float:
        with torch.no_grad():
            batch = receler.batch(0)
            predicted = student(batch.scene.state.latents, batch.scene.state.timestep, batch.conditioning)
            return float((predicted - batch.scene.original).square().mean())

    start = error()
    receler.before_step(0)
    assert error() < start
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in trained.items())


def test_its_delta_acts_in_the_sampler_and_changes_no_weight(
    quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    recipe = load_recipe("miniature").model_copy(update={"height": 16, "width": 16, "steps": 2, "batch_size": 2})
    request = [ImageRequest("a cat", 0)]
    base_image = sample(tiny_base, recipe, request)
    delta, _ = run_job(quick_job("receler", learning_rate=1.0), tiny_base, concept_set)
    assert delta.kind == "hook" and delta.provenance["hook"]["name"] == "receler" and delta.edited(tiny_base) == {}
    tiny_base.swap(delta)
    assert (sample(tiny_base, recipe, request) != base_image).any()
    tiny_base.swap(None)
    assert (sample(tiny_base, recipe, request) == base_image).all()


def test_a_delta_of_other_erasers_is_refused(quick_job: Any, tiny_base: Base, concept_set: ConceptSet) -> None:
    delta, _ = run_job(quick_job("receler"), tiny_base, concept_set)
    recipe = load_recipe("miniature").model_copy(update={"height": 16, "width": 16, "steps": 1, "batch_size": 1})
    name = next(iter(delta.tensors))
    for tensors in ({name: delta.tensors[name]}, {**delta.tensors, name: torch.zeros(3)}):
        tiny_base.swap(Delta("hook", tensors, delta.provenance))
        with pytest.raises(UserError, match="no eraser for each cross-attention"):
            sample(tiny_base, recipe, [ImageRequest("a cat", 0)])
