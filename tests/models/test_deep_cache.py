"""DeepCache: between whole passes, the last layer on what was left from below."""

from typing import Any

import numpy as np
import pytest
import torch

from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.recipe import Recipe
from efface.models.sampling.deep_cache import DeepCached
from efface.models.sampling.sampler import ImageRequest, sample

RECIPE = Recipe(name="t", scheduler="ddim", steps=6, guidance_scale=5.0, height=16, width=16, batch_size=2)
REQUESTS = [ImageRequest("a red cat", seed) for seed in range(3)]


def test_a_step_between_is_a_whole_pass_whose_last_layer_is_given_what_was_left(tiny_base: Base) -> None:
    """The same by other means: a whole pass, in which the input of the last layer is replaced."""
    unet, prompts = tiny_base.unet, Conditioning(torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(0)))
    first, second = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    seen: list[torch.Tensor] = []

    def watch(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        joined, *rest = inputs
        deep = joined.shape[1] - unet.conv_in.out_channels
        seen.append(joined[:, :deep])
        return (torch.cat([seen[0], joined[:, deep:]], dim=1), *rest)

    with torch.no_grad():
        handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(watch)
        expected = [tiny_base.denoiser(latents, step, prompts) for latents, step in ((first, 900), (second, 880))]
        handle.remove()
        cached = DeepCached(tiny_base.denoiser, unet, 2)
        found = [cached(latents, step, prompts) for latents, step in ((first, 900), (second, 880))]
        whole = cached(second, 860, prompts)
        assert torch.equal(whole, tiny_base.denoiser(second, 860, prompts))
    assert torch.equal(found[0], expected[0])
    assert torch.allclose(found[1], expected[1], atol=1e-6)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3), "what lies below has changed meanwhile"


def test_it_saves_passes_and_changes_the_image_and_its_recipe(tiny_base: Base) -> None:
    passes: list[int] = []
    tiny_base.unet.mid_block.register_forward_pre_hook(lambda module, inputs: passes.append(1))
    plain = sample(tiny_base, RECIPE, REQUESTS)
    assert len(passes) == 2 * 6
    passes.clear()
    cached = RECIPE.model_copy(update={"deep_cache": 3})
    images = sample(tiny_base, cached, REQUESTS)
    assert len(passes) == 2 * 2
    assert not np.array_equal(images, plain)
    assert Recipe(**cached.model_dump()).id != RECIPE.id == Recipe(**RECIPE.model_dump()).id


def test_another_kind_of_unet_is_refused(tiny_base: Base) -> None:
    tiny_base.unet.class_embedding = torch.nn.Embedding(2, 2)
    with pytest.raises(UserError, match="deep_cache: is for UNets of Stable Diffusion"):
        sample(tiny_base, RECIPE.model_copy(update={"deep_cache": 2}), REQUESTS)
