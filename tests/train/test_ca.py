"""CA against its paper: whose prediction is the target, what the gradient leaves out, and what is shown when."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.text.first_token import detach_first_token
from efface.models.text.text_encoding import encode_prompts
from efface.train.data import latents as data
from efface.train.job import make_job
from efface.train.method import get_method, parse_config
from efface.train.run_job import run_job


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of one head."""
    return torch.softmax(query @ key.T / query.shape[-1] ** 0.5, dim=-1) @ value


def test_the_gradient_of_keys_and_values_gets_nothing_from_the_first_token() -> None:
    rng = torch.Generator().manual_seed(0)
    block: Any = nn.Module()
    block.attn2 = Attention(query_dim=6, cross_attention_dim=5, heads=1, dim_head=4)
    pixels, prompt, weight = (torch.randn(*shape, generator=rng) for shape in ((3, 6), (7, 5), (3, 6)))
    detach_first_token(Denoiser(block))
    (block.attn2(pixels[None], prompt[None])[0] * weight).sum().backward()

    # The formula, with the first token's key and value made by constants.
    matrices = {name: getattr(block.attn2, name).weight.detach() for name in ("to_q", "to_k", "to_v")}
    to_k, to_v = matrices["to_k"].clone().requires_grad_(), matrices["to_v"].clone().requires_grad_()
    key = torch.cat([prompt[:1] @ matrices["to_k"].T, prompt[1:] @ to_k.T])
    value = torch.cat([prompt[:1] @ matrices["to_v"].T, prompt[1:] @ to_v.T])
    out = block.attn2.to_out[0]
    attended = attend(pixels @ matrices["to_q"].T, key, value) @ out.weight.detach().T + out.bias.detach()
    (attended * weight).sum().backward()

    torch.testing.assert_close(block.attn2.to_k.weight.grad, to_k.grad)
    torch.testing.assert_close(block.attn2.to_v.weight.grad, to_v.grad)


@torch.no_grad()
def test_detaching_the_first_token_keeps_every_prediction_bit_for_bit(prepare: Any, tiny_base: Base) -> None:
    _, student = prepare("ca")
    rng = torch.Generator().manual_seed(0)
    latents, prompt = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 77, 16, generator=rng)
    stock = tiny_base.unet(latents, 500, encoder_hidden_states=prompt).sample
    assert torch.equal(student(latents, 500, Conditioning(prompt)), stock)


@torch.no_grad()
def test_the_model_based_target_is_the_students_own_prediction_for_the_anchor(prepare: Any, shaken: Any) -> None:
    ca, student = prepare("ca", anchor_prompts=1)
    shaken(student)
    ablate, prior = ca.batch(0)
    anchor = prior.conditioning  # with one caption every sample of the prior has the anchor's
    torch.testing.assert_close(ablate.target, student(ablate.latents, ablate.timesteps, anchor))


def test_no_gradient_flows_through_the_target(prepare: Any) -> None:
    ca, student = prepare("ca", prior_weight=0)
    weight = next(value for name, value in student.module.named_parameters() if name.endswith("attn2.to_v.weight"))
    weight.requires_grad_(True)
    with torch.no_grad():
        ablate, _ = ca.batch(0)
    (gradient,) = torch.autograd.grad(ca.loss(student, (ablate, None)), weight)

    # d/dw mean((f(w) - y)^2) = 2/n (f - y) df/dw, with y a number.
    predicted = student(ablate.latents, ablate.timesteps, ablate.conditioning)
    pull = 2 / predicted.numel() * (predicted - ablate.target).detach()
    (expected,) = torch.autograd.grad(predicted, weight, grad_outputs=pull)
    torch.testing.assert_close(gradient, expected)


@torch.no_grad()
def test_the_noise_based_target_is_the_noise_on_an_image_of_the_anchor(prepare: Any, alphas_cumprod: Tensor) -> None:
    ca, _ = prepare("ca", objective="noise", anchor_images=1)
    ablate, _ = ca.batch(0)
    alpha = alphas_cumprod[ablate.timesteps].view(-1, 1, 1, 1)
    clean = (ablate.latents - (1 - alpha).sqrt() * ablate.target) / alpha.sqrt() / 0.18215
    images = ca.images.concepts[0].posterior
    assert ((clean - images.mean).abs() <= 5 * images.std + 1e-3 / alpha.sqrt()).all()


@torch.no_grad()
def test_a_base_that_predicts_velocities_is_trained_on_velocities(
    prepare: Any, tiny_base: Base, alphas_cumprod: Tensor
) -> None:
    """v = alpha eps - sigma x_0 (arXiv 2202.00512), so x_0 = alpha x_t - sigma v and eps = sigma x_t + alpha v."""
    tiny_base.scheduler_config["prediction_type"] = "v_prediction"
    ca, _ = prepare("ca", objective="noise", anchor_images=1, batch_size=32)
    images = ca.images.concepts[0].posterior
    for noised in ca.batch(0):
        alpha = alphas_cumprod[noised.timesteps].view(-1, 1, 1, 1).sqrt()
        sigma = (1 - alpha**2).sqrt()
        clean = (alpha * noised.latents - sigma * noised.target) / 0.18215
        noise = sigma * noised.latents + alpha * noised.target
        assert ((clean - images.mean).abs() <= 6 * images.std + 1e-3).all()
        assert noise.mean().abs() < 0.05 and abs(noise.std() - 1) < 0.05  # 8192 numbers, 4.5 standard errors


@torch.no_grad()
def test_the_loss_adds_the_weighted_prior(prepare: Any) -> None:
    ca, student = prepare("ca", prior_weight=0.25)
    ablate, prior = ca.batch(0)
    errors = [((student(x.latents, x.timesteps, x.conditioning) - x.target) ** 2).mean() for x in (ablate, prior)]
    torch.testing.assert_close(ca.loss(student, (ablate, prior)), errors[0] + 0.25 * errors[1])
    assert prepare("ca", prior_weight=0)[0].batch(0)[1] is None


@torch.no_grad()
def test_timesteps_are_uniform_over_the_whole_schedule(prepare: Any) -> None:
    ca, _ = prepare("ca", batch_size=64, objective="noise", prior_weight=0)
    drawn = torch.cat([ca.batch(index)[0].timesteps for index in range(20)]).double()
    # mean 499.5, standard deviation 288.7; four standard errors of 1280 draws are 32
    assert abs(drawn.mean() - 499.5) < 32 and drawn.min() < 10 and drawn.max() > 989


@torch.no_grad()
def test_every_image_is_shown_once_a_round_and_concepts_take_turns(prepare: Any, tiny_base: Base) -> None:
    ca, _ = prepare("ca", "cat", "dog", anchor_images=3)
    for turns in (range(3), range(3, 6)):
        assert sorted(ca.images.shown("ablate", 0, turn) for turn in turns) == [0, 1, 2]
    draw = ca.images.draw("ablate", 0)
    shown = ca.batch(0)[0].conditioning.encoder_hidden_states
    assert torch.equal(shown, encode_prompts(tiny_base, draw.targets).encoder_hidden_states)
    for target, images in zip(draw.targets, ca.images.concepts, strict=True):
        assert target in {caption.targets[0] for caption in images.captions}


def test_steps_follow_from_the_samples_seen() -> None:
    def steps(**config: Any) -> int:
        return get_method("ca")(parse_config("ca", config)).steps  # type: ignore[attr-defined]

    assert steps() == 100  # the authors' 100 steps of 2 x 4
    assert steps(samples_seen=10, batch_size=4) == 3
    assert steps(samples_seen=800, batch_size=4, gradient_accumulation_steps=2) == 100


def test_cached_images_are_not_made_again_and_give_the_same_delta(
    quick_job: Any, tiny_base: Base, concept_set: ConceptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, _ = run_job(quick_job("ca"), tiny_base, concept_set)
    run_job(quick_job("ca", seed=7), tiny_base, concept_set, cache=tmp_path)
    monkeypatch.setattr(data, "sample", None)
    cached, _ = run_job(quick_job("ca"), tiny_base, concept_set, cache=tmp_path)
    assert cached.id == without.id


def test_a_concept_without_an_anchor_is_refused(tiny_base: Base) -> None:
    alone = ConceptSet(name="alone", version=1, concepts=(Concept(name="cat", kind="animal", phrase="a cat"),))
    with pytest.raises(UserError, match=r"concept 'cat' has no anchor .* in the concept set alone"):
        run_job(make_job("tiny", tiny_base.fingerprint, "ca", alone, ["cat"]), tiny_base, alone)


@torch.no_grad()
def test_the_masked_loss_sums_the_channels_over_the_views_region(prepare: Any) -> None:
    ca, student = prepare("ca", masked_loss=True, prior_weight=0)
    ablate, _ = ca.batch(0)
    errors = (student(ablate.latents, ablate.timesteps, ablate.conditioning) - ablate.target) ** 2
    # of 8 x 8 latents a rim of one is left out
    expected = 4 * errors[:, :, 1:7, 1:7].mean()
    torch.testing.assert_close(ca.loss(student, (ablate, None)), expected)


def test_a_view_with_grey_needs_the_masked_loss() -> None:
    with pytest.raises(UserError, match="zoom leaves grey around an image"):
        parse_config("ca", {"augment": "zoom"})


@torch.no_grad()
def test_an_image_is_shown_in_another_view_each_round_and_the_prior_at_most_mirrored(prepare: Any) -> None:
    ca, _ = prepare("ca", augment="zoom", masked_loss=True, anchor_images=2, samples_seen=8)
    images = ca.images.concepts[0]
    assert [len(images.views[purpose]) for purpose in ("ablate", "prior")] == [4, 1]
    assert len(images.posterior.mean) == 10
    seen = {ca.images._view(images, "ablate", 0, turn)[0] for turn in (0, 2, 4, 6)}
    assert seen == {0, 2, 4, 6}
    assert all(view.scale == view.size for view in images.views["prior"][0])
    assert ca.images._view(images, "prior", 1, 0)[0] == 9


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{} {x}"])
def test_a_template_without_one_place_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"templates of animal should hold one \{\} each"):
        parse_config("ca", {"templates": {"animal": [template]}})
