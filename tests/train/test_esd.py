"""ESD against its paper: the target's algebra, the trajectory, and whose predictions are used where."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.parameter_groups import select
from efface.models.text.text_encoding import encode_prompts
from efface.train.method import get_method, parse_config
from efface.train.negative_guidance import esd_target


def ddim(predict: Any, cond: Conditioning, uncond: Conditioning, noise: Tensor, stop: int, alphas: Tensor) -> Tensor:
    """The state before step `stop` of deterministic DDIM with guidance 3 (Song et al. 2021, eq. 12)."""
    latents = noise
    for here, there in pairwise(TIMESTEPS[: stop + 1]):
        eps_cond, eps_uncond = predict(latents, here, cond), predict(latents, here, uncond)
        eps = eps_uncond + 3 * (eps_cond - eps_uncond)
        clean = (latents - (1 - alphas[here]).sqrt() * eps) / alphas[here].sqrt()
        latents = alphas[there].sqrt() * clean + (1 - alphas[there]).sqrt() * eps
    return latents


def first_with_stop(method: Any, timestep: int) -> int:
    return next(index for index in range(100) if int(method.batch(index).timestep) == timestep)


# 3 of 1000 steps, spaced by 333 from the end of the schedule, offset 1.
TIMESTEPS = [667, 334, 1]


def test_eta_1_of_the_paper_is_2_of_the_newer_script() -> None:
    concept, uncond = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    newer_script = concept - 2 * (concept - uncond)
    torch.testing.assert_close(esd_target(uncond, concept, uncond, eta=1), newer_script)


def test_erasing_from_a_wider_prompt_is_the_newer_script_with_the_same_eta() -> None:
    origin, concept, uncond = (torch.tensor([value]) for value in (5.0, 3.0, 2.0))
    assert esd_target(origin, concept, uncond, eta=2).item() == 5 - 2 * (3 - 2)


def test_the_target_in_velocities_is_the_target_in_noise() -> None:
    """eps = alpha v + sigma x_t (arXiv 2202.00512), for one x_t."""
    generator = torch.Generator().manual_seed(0)
    x, *velocities = torch.randn(4, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    alpha, sigma = 0.6, 0.8
    in_noise = esd_target(*(alpha * velocity + sigma * x for velocity in velocities), eta=1.7)
    torch.testing.assert_close(alpha * esd_target(*velocities, eta=1.7) + sigma * x, in_noise)


@torch.no_grad()
def test_with_eta_0_the_target_is_the_frozen_prediction_for_the_empty_prompt(
    prepare: Any, shaken: Any, tiny_base: Base
) -> None:
    esd, student = prepare("esd", eta=0)
    shaken(student)
    rollout = esd.batch(0)
    empty = tiny_base.denoiser(rollout.latents, rollout.timestep, encode_prompts(tiny_base, [""]))
    torch.testing.assert_close(rollout.target, empty)


@torch.no_grad()
@pytest.mark.parametrize("stop", [0, 1, 2])
@pytest.mark.parametrize("on_policy", [True, False])
def test_the_trajectory_is_ddim_with_guidance_3_by_the_student_or_by_the_frozen_original(
    on_policy: bool, stop: int, prepare: Any, shaken: Any, tiny_base: Base, alphas_cumprod: Tensor
) -> None:
    esd, student = prepare("esd", on_policy=on_policy)
    shaken(student)
    index = first_with_stop(esd, TIMESTEPS[stop])
    cond, uncond = encode_prompts(tiny_base, ["a cat"]), encode_prompts(tiny_base, [""])
    predict = student if on_policy else tiny_base.denoiser
    noise = first_latents(esd, index) if stop else esd.batch(index).latents
    expected = ddim(predict, cond, uncond, noise, stop, alphas_cumprod)
    assert abs(noise.std() - 1) < 0.2
    torch.testing.assert_close(esd.batch(index).latents, expected, rtol=1e-4, atol=1e-4)


def first_latents(esd: Any, index: int) -> Tensor:
    """The noise batch `index` starts from, caught on its way into the first prediction."""
    caught: list[Tensor] = []
    esd.batch(index + 1)  # else the frozen model's trajectory is still at hand
    sampler = esd.sampler

    def catch(latents: Tensor, timestep: Any, conditioning: Conditioning) -> Tensor:
        caught.append(latents[:1])
        return sampler(latents, timestep, conditioning)

    esd.sampler = catch
    esd.batch(index)
    esd.sampler = sampler
    return caught[0]


@torch.no_grad()
def test_the_target_steers_the_frozen_prediction_away_from_the_concept(
    prepare: Any, shaken: Any, tiny_base: Base
) -> None:
    esd, student = prepare("esd", eta=3)
    shaken(student)
    rollout, teacher = esd.batch(0), tiny_base.denoiser
    cat, empty = (teacher(rollout.latents, rollout.timestep, encode_prompts(tiny_base, [p])) for p in ("a cat", ""))
    torch.testing.assert_close(rollout.target, 4 * empty - 3 * cat, rtol=1e-4, atol=1e-5)
    cat_prompt = encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states
    torch.testing.assert_close(rollout.conditioning.encoder_hidden_states, cat_prompt)


@torch.no_grad()
def test_erase_from_conditions_trajectory_and_student_on_the_wider_prompt(
    prepare: Any, tiny_base: Base, alphas_cumprod: Tensor
) -> None:
    esd, student = prepare("esd", erase_from="an animal", eta=2)
    index = first_with_stop(esd, TIMESTEPS[2])
    rollout = esd.batch(index)
    wide, cat, empty = (encode_prompts(tiny_base, [prompt]) for prompt in ("an animal", "a cat", ""))
    expected = ddim(student, wide, empty, first_latents(esd, index), 2, alphas_cumprod)
    torch.testing.assert_close(rollout.latents, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rollout.conditioning.encoder_hidden_states, wide.encoder_hidden_states)
    eps = [tiny_base.denoiser(rollout.latents, rollout.timestep, c) for c in (wide, cat, empty)]
    torch.testing.assert_close(rollout.target, eps[0] - 2 * (eps[1] - eps[2]), rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_squared_error_of_the_unguided_student(prepare: Any) -> None:
    esd, student = prepare("esd", batch_size=2)
    rollout = esd.batch(0)
    error = student(rollout.latents, rollout.timestep, rollout.conditioning) - rollout.target
    torch.testing.assert_close(esd.loss(student, rollout), (error**2).mean())


@torch.no_grad()
def test_a_batch_shares_the_step_and_has_noise_of_its_own_for_each_sample(prepare: Any) -> None:
    esd, _ = prepare("esd", batch_size=3)
    rollout = esd.batch(0)
    assert rollout.timestep.ndim == 0 and rollout.latents.shape == (3, 4, 8, 8)
    assert not torch.equal(rollout.latents[0], rollout.latents[1])


@torch.no_grad()
def test_every_step_of_the_trajectory_is_drawn_and_every_concept(prepare: Any, tiny_base: Base) -> None:
    esd, _ = prepare("esd", "cat", "dog")
    batches = [esd.batch(index) for index in range(30)]
    assert {int(rollout.timestep) for rollout in batches} == set(TIMESTEPS)
    cat, dog = encode_prompts(tiny_base, ["a cat", "a dog"]).encoder_hidden_states
    drawn = [
        [torch.equal(rollout.conditioning.encoder_hidden_states[0], concept) for rollout in batches]
        for concept in (cat, dog)
    ]
    assert any(drawn[0]) and any(drawn[1]) and all(a != b for a, b in zip(*drawn, strict=True))


@pytest.mark.parametrize(
    ("variant", "trains", "not_trains"),
    [
        ("x", "attn2.to_q.weight", "attn1.to_q.weight"),
        ("u", "attn1.to_q.weight", "attn2.to_k.weight"),
        ("x-strict", "attn2.to_v.weight", "attn2.to_q.weight"),
        ("selfattn", "attn1.to_k.weight", "attn2.to_k.weight"),
        ("full", "conv_out.weight", None),
        ("notime", "attn2.to_q.weight", "conv_out.weight"),
        ("esd-u", "conv_out.weight", "attn2.to_k.weight"),
        ("esd-all", "attn2.to_k.weight", "norm1.weight"),
    ],
)
def test_each_variant_trains_its_group(variant: str, trains: str, not_trains: str | None, tiny_base: Base) -> None:
    group = get_method("esd")(parse_config("esd", {"variant": variant})).group
    names = select(tiny_base, group)
    assert any(name.endswith(trains) for name in names)
    assert not_trains is None or not any(name.endswith(not_trains) for name in names)


@torch.no_grad()
def test_one_of_a_concepts_prompts_is_drawn_for_each_batch(prepare: Any, tiny_base: Base) -> None:
    esd, _ = prepare("esd", prompts=["{}", "{name}", "pets"])
    texts = ("a cat", "cat", "pets")
    rows = encode_prompts(tiny_base, texts).encoder_hidden_states
    drawn = [esd.batch(index).conditioning.encoder_hidden_states[0] for index in range(20)]
    counts = [sum(torch.equal(row, one) for one in drawn) for row in rows]
    assert sum(counts) == 20 and all(counts)


@pytest.mark.parametrize("prompt", ["{} or {name}", "{x}", "a {"])
def test_a_prompt_with_other_places_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match=r"a prompt should hold '\{\}' or '\{name\}' once"):
        parse_config("esd", {"prompts": [prompt]})


@torch.no_grad()
def test_the_roll_outs_have_the_size_asked_for(prepare: Any) -> None:
    assert prepare("esd", size=64)[0].batch(0).latents.shape == (1, 4, 32, 32)
    assert prepare("esd")[0].batch(0).latents.shape == (1, 4, 8, 8)
