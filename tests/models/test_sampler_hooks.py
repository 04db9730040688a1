"""Sampler hooks: an eraser that changes no weight still acts on every image, and only while it is applied."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.delta import Delta
from efface.models.export import export
from efface.models.hooks.sld import SafetyGuidance, SLDSettings
from efface.models.noise_predictor import noise_scale
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, SamplingCost, sample
from efface.models.sampling.sampler_hooks import HOOKS, named_hook

REQUESTS = [ImageRequest("a red cat", seed) for seed in range(3)]
MIXED = [ImageRequest(prompt, seed) for seed, prompt in enumerate(("a red cat", "", "monet in a red hat"))]
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
    sld = SafetyGuidance(SLDSettings(warm_up=0, scale=5, threshold=0.0, momentum=0.5, beta=0.25), unsafe, of_noise)
    latents = torch.zeros(1, 1, 1, 1)
    # mu = 5 * 0.1 = 0.5; gamma = 0.5 * 0.2 = 0.1; nu becomes 0.75 * 0.1 = 0.075
    assert sld(predict, latents, 1, cond, zero, 2.0).item() == pytest.approx(2 * (0.1 - 0.1), abs=1e-6)
    # gamma = 0.1 + 0.5 * 0.075
    assert sld(predict, latents, 1, cond, zero, 2.0).item() == pytest.approx(2 * (0.1 - 0.1375), abs=1e-6)
    # where eps(c) is above eps(S) the hook does nothing
    near = Conditioning(torch.full((1, 1, 1), 0.05))
    away = SafetyGuidance(SLDSettings(warm_up=0, threshold=0.0), near, of_noise)
    assert away(predict, latents, 1, cond, zero, 2.0).item() == pytest.approx(0.2, abs=1e-6)


ACTING = {
    "negative-prompt": {},
    "sld": {"warm_up": 2, "threshold": 1.0},
    "safree": {"slope": 0.2},  # of random weights all prompts are alike: some steps are filtered, and some not
    "adavd": {"centre": 0.5},
}
"""Hooks with settings by which they act on a tiny model."""


TRAINED = {"spm", "receler"}
"""Hooks with tensors, which `tests/train/test_trained_hooks.py` tries."""


def test_every_hook_is_tried() -> None:
    assert set(ACTING) | TRAINED == set(HOOKS.names())


@pytest.mark.parametrize("name", ACTING)
def test_an_image_does_not_depend_on_what_else_is_in_its_batch(tiny_base: Base, name: str) -> None:
    plain = sample(tiny_base, RECIPE, MIXED)
    tiny_base.swap(hook(tiny_base, name, prompts=["van gogh", "monet"], **ACTING[name]))
    images = sample(tiny_base, RECIPE, MIXED)
    for i, request in enumerate(MIXED):
        assert np.array_equal(sample(tiny_base, RECIPE, [request])[0], images[i])
    assert not np.array_equal(images, plain)
    tiny_base.swap(None)
    assert np.array_equal(sample(tiny_base, RECIPE, MIXED), plain), "nothing of the hook is left"


@pytest.mark.parametrize(
    ("name", "passes"), [(None, 2), ("negative-prompt", 2), ("sld", 3), ("safree", 3), ("adavd", 2)]
)
def test_the_passes_of_an_image_are_counted(tiny_base: Base, name: str | None, passes: int) -> None:
    if name:
        tiny_base.swap(hook(tiny_base, name, prompts=["van gogh"]))
    cost = SamplingCost()
    for requests in (REQUESTS, REQUESTS[:1]):  # the last batch of each is padded
        sample(tiny_base, RECIPE, requests, cost=cost)
    assert cost.images == 4 and cost.unet_rows == 4 * passes * RECIPE.steps and cost.seconds > 0
    if name:
        hook_class, config = named_hook(tiny_base.applied)
        assert hook_class.passes(config) == passes, "as it is declared"


def test_safree_without_scaling_is_safree_without_re_attention(tiny_base: Base) -> None:
    made = []
    for settings in ({"skip_scales": [1.0, 1.0]}, {"re_attention": False}, {"skip_scales": [0.2, 0.2]}):
        tiny_base.swap(hook(tiny_base, "safree", prompts=["a red"], slope=0.2, **settings))
        made.append(sample(tiny_base, RECIPE, REQUESTS).astype(int))
    assert np.abs(made[0] - made[1]).max() <= 1 < np.abs(made[2] - made[1]).max()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("negative-prompt", "give any pipeline of diffusers negative_prompt='van gogh, monet' instead"),
        ("sld", "StableDiffusionPipelineSafe with safety_concept='van gogh, monet'"),
        ("safree", "diffusers has no pipeline that does so"),
        ("adavd", "diffusers has no pipeline that does so"),
    ],
)
def test_an_export_says_what_a_stock_pipeline_can_do(tiny_base: Base, tmp_path: Path, name: str, advice: str) -> None:
    delta = hook(tiny_base, name, prompts=["van gogh", "monet"])
    with pytest.raises(UserError, match=f"changes no weight, so there is nothing to export: .*{advice}"):
        export(tiny_base, delta, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


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
