"""Sampler hooks: an eraser that changes no weight still acts on every image, and only while it is applied."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.delta import Delta
from efface.models.noise_predictor import noise_scale
from efface.models.recipe import Recipe
from efface.models.sampler import ImageRequest, sample
from efface.models.sampler_hooks import SLD, SLDConfig

REQUESTS = [ImageRequest("a red cat", seed) for seed in range(3)]
of_noise = noise_scale({"prediction_type": "epsilon"})
RECIPE = Recipe(name="t", scheduler="ddim", steps=4, guidance_scale=5.0, height=16, width=16, batch_size=2)


def hook(base: Base, name: str, **config: Any) -> Delta:
    return Delta("hook", {}, {"base_id": base.fingerprint, "hook": {"name": name, "config": config}})


def test_the_negative_prompt_hook_is_the_recipes_negative_prompt(tiny_base: Base) -> None:
    negative = sample(tiny_base, RECIPE.model_copy(update={"negative_prompt": "van gogh, monet"}), REQUESTS)
    tiny_base.swap(hook(tiny_base, "negative-prompt", prompts=["van gogh", "monet"]))
    assert np.array_equal(sample(tiny_base, RECIPE, REQUESTS), negative)


def test_a_hook_acts_only_while_it_is_applied(tiny_base: Base) -> None:
    plain = sample(tiny_base, RECIPE, REQUESTS)
    tiny_base.swap(hook(tiny_base, "sld", prompts=["van gogh"], warm_up=0, threshold=1.0))
    assert not np.array_equal(sample(tiny_base, RECIPE, REQUESTS), plain)
    tiny_base.swap(None)
    assert np.array_equal(sample(tiny_base, RECIPE, REQUESTS), plain)


@pytest.mark.parametrize("config", [{"scale": 0.0}, {"warm_up": 4}])
def test_sld_without_scale_or_before_its_warm_up_is_plain_guidance(tiny_base: Base, config: dict[str, Any]) -> None:
    plain = sample(tiny_base, RECIPE, REQUESTS)
    tiny_base.swap(hook(tiny_base, "sld", prompts=["van gogh"], **config))
    assert np.abs(sample(tiny_base, RECIPE, REQUESTS).astype(int) - plain).max() <= 1


def test_sld_computes_the_papers_equations() -> None:
    """One latent pixel, eps(0), eps(c), eps(S) = 0, 0.1, 0.2, worked by hand over two steps."""

    def predict(latents: Tensor, timestep: Any, conditions: Conditioning) -> Tensor:
        return conditions.encoder_hidden_states[:, 0, 0].view(-1, 1, 1, 1)

    zero, cond, unsafe = (Conditioning(torch.full((1, 1, 1), value)) for value in (0.0, 0.1, 0.2))
    sld = SLD(SLDConfig(prompts=("x",), warm_up=0, scale=5, threshold=0.0, momentum=0.5, beta=0.25), unsafe, of_noise)
    latents = torch.zeros(1, 1, 1, 1)
    # mu = 5 * 0.1 = 0.5; gamma = 0.5 * 0.2 = 0.1; nu becomes 0.75 * 0.1 = 0.075
    assert sld(predict, latents, 1, cond, zero, 2.0).item() == pytest.approx(2 * (0.1 - 0.1), abs=1e-6)
    # gamma = 0.1 + 0.5 * 0.075
    assert sld(predict, latents, 1, cond, zero, 2.0).item() == pytest.approx(2 * (0.1 - 0.1375), abs=1e-6)
    # where eps(c) is above eps(S) the hook does nothing
    near = Conditioning(torch.full((1, 1, 1), 0.05))
    away = SLD(SLDConfig(prompts=("x",), warm_up=0, threshold=0.0), near, of_noise)
    assert away(predict, latents, 1, cond, zero, 2.0).item() == pytest.approx(0.2, abs=1e-6)


def test_every_batch_starts_its_own_hook(tiny_base: Base) -> None:
    tiny_base.swap(hook(tiny_base, "sld", prompts=["van gogh"], warm_up=2, threshold=1.0))
    images = sample(tiny_base, RECIPE, REQUESTS)
    assert np.array_equal(sample(tiny_base, RECIPE, REQUESTS[2:])[0], images[2])


@pytest.mark.parametrize(
    ("name", "config", "fault"),
    [("sdl", {"prompts": ["x"]}, "did you mean 'sld'"), ("sld", {"prompt": ["x"]}, "key 'prompts' is missing")],
)
def test_an_unknown_hook_or_config_is_a_users_mistake(
    tiny_base: Base, name: str, config: dict[str, Any], fault: str
) -> None:
    tiny_base.swap(hook(tiny_base, name, **config))
    with pytest.raises(UserError, match=fault):
        sample(tiny_base, RECIPE, REQUESTS)
