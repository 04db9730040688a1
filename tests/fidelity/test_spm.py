"""SPM against its paper: the erasing term's signs, latent anchors, and membranes that are nothing when off."""

from typing import Any

import pytest
import torch

from efface.concepts.concept import ConceptSet
from efface.errors import UserError
from efface.models.adapters import add_adapters
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.delta import Delta
from efface.models.hooks.spm import SPMHook, SPMHookConfig
from efface.models.text.text_encoding import encode_prompts
from efface.train.methods.spm import latent_anchor
from efface.train.run_job import run_job
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


def hooked(base: Base, spm: Any, power: int = 2) -> SPMHook:
    """The sampler's hook of a trained adapter for "cat"."""
    config = {"prompts": ["cat"], "power": power}
    provenance = {"base_id": base.fingerprint, "hook": {"name": "spm", "config": config}}
    base.swap(Delta("hook", {name: value.clone() for name, value in spm.adapters.tensors().items()}, provenance))
    return SPMHook(base, SPMHookConfig(**config))


@torch.no_grad()
def test_gamma_is_the_larger_of_cosine_and_shared_tokens(prepare: Any, tiny_base: Base) -> None:
    hook = hooked(tiny_base, prepare("spm")[0])

    def cosine(prompt: str) -> float:
        one, other = (encode_prompts(tiny_base, [text]).encoder_hidden_states.flatten() for text in (prompt, "cat"))
        return float(one @ other / (one.norm() * other.norm()))

    # the tokens are letters: of c, a and t at the end of a word, "ab" has none, "ca" the first
    assert hook.gamma("cat") == pytest.approx(1.0)
    assert hook.gamma("ab") == pytest.approx(cosine("ab"), abs=1e-5)
    assert hook.gamma("ca") == pytest.approx(max(cosine("ca"), 1 / 3), abs=1e-5)


@torch.no_grad()
def test_adapters_act_by_gamma_to_the_power_on_both_passes_of_guidance(prepare: Any, tiny_base: Base) -> None:
    spm, _ = prepare("spm")
    trained_up(spm)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = ["cat", "ab"]
    hook = hooked(tiny_base, spm, power=2)
    cond, empty = encode_prompts(tiny_base, prompts), encode_prompts(tiny_base, [""])
    plain = tiny_base.denoiser(latents, 500, cond)
    with hook.attached(tiny_base.denoiser):
        found = hook.guidance(prompts)(tiny_base.denoiser, latents, 500, cond, empty, 3.0)
    assert torch.equal(tiny_base.denoiser(latents, 500, cond), plain)  # off it is the base, bit for bit
    for row, prompt in enumerate(prompts):
        student = tiny_base.denoiser.copy()
        names = list(spm.adapters.layers)
        own = add_adapters(student.modules, names, 1, 1.0, generator(0, "any"))
        for name, adapter in own.layers.items():
            adapter.down.copy_(hook.gamma(prompt) * spm.adapters.layers[name].down)  # both halves, as the authors scale
            adapter.up.copy_(hook.gamma(prompt) * spm.adapters.layers[name].up)
        eps = [student(latents[row : row + 1], 500, one) for one in (cond[row], empty)]
        torch.testing.assert_close(found[row : row + 1], eps[1] + 3 * (eps[0] - eps[1]), rtol=1e-3, atol=1e-4)


def test_facilitated_transport_is_a_hook_with_the_bare_name(
    quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    delta, _ = run_job(quick_job("spm", transport="facilitated"), tiny_base, concept_set)
    static, _ = run_job(quick_job("spm"), tiny_base, concept_set)
    assert (delta.kind, static.kind) == ("hook", "adapter")
    assert delta.provenance["hook"] == {"name": "spm", "config": {"power": 2, "prompts": ["cat"]}}
    assert all(torch.equal(delta.tensors[key], value) for key, value in static.tensors.items())
    broken = {**delta.tensors, "unet.conv_in.down": torch.zeros(1, 3)}
    tiny_base.swap(Delta("hook", broken, delta.provenance))
    with pytest.raises(UserError, match=r"'unet\.conv_in' has no adapter that fits"):
        SPMHook(tiny_base, SPMHookConfig(prompts=("cat",)))
