"""The copy that is sampled with follows every delta, is made once, and once compiled is not compiled again."""

import copy

import numpy as np
import pytest
import torch

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.delta import Delta
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.models.sampling_copy import SamplingCopy

REQUESTS = [ImageRequest("a red cat", seed) for seed in (0, 7)]
HALF = Recipe(
    name="t", scheduler="ddim", steps=3, guidance_scale=5.0, height=16, width=16, dtype="bfloat16", batch_size=2
)


def changed(base: Base, seed: int, *names: str) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names:
        value = base.originals()[name]
        tensors[name] = value + 0.1 * torch.randn(value.shape, generator=generator)
    return Delta("weights", tensors, {"base_id": base.fingerprint})


def test_its_images_are_those_of_a_fresh_copy_whatever_was_swapped_before(tiny_base: Base) -> None:
    names = sorted(name for name in tiny_base.tensors() if "attn2.to_k.weight" in name or "conv_out" in name)
    one, other = changed(tiny_base, 0, *names), changed(tiny_base, 1, names[0])
    deltas = (None, one, other, None, one)
    resident = []
    for delta in deltas:
        tiny_base.swap(delta)
        resident.append(sample(tiny_base, HALF, REQUESTS))
    for delta, images in zip(deltas, resident, strict=True):
        tiny_base.swap(delta)
        tiny_base._sampling_copies.clear()
        assert np.array_equal(sample(tiny_base, HALF, REQUESTS), images)
    assert not np.array_equal(resident[0], resident[1]) and not np.array_equal(resident[1], resident[2])


def test_the_network_is_copied_once(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[object] = []
    really = copy.deepcopy
    monkeypatch.setattr(copy, "deepcopy", lambda module: copies.append(module) or really(module))
    for delta in (None, changed(tiny_base, 0, "unet.conv_out.weight"), None):
        tiny_base.swap(delta)
        sample(tiny_base, HALF, REQUESTS)
    assert copies == [tiny_base.unet]


def test_compiled_it_takes_deltas_without_compiling_anew_and_heeds_hooks(tiny_base: Base) -> None:
    compilations: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compilations.append(1)
        return graph.forward

    torch.compiler.reset()
    sampling_copy = SamplingCopy(tiny_base.denoiser, torch.float32, True, backend)
    tiny_base._sampling_copies[torch.float32, True] = sampling_copy
    latents, prompts = torch.randn(2, 4, 8, 8), Conditioning(torch.randn(2, 77, 16))

    def predicted(hooked: bool = False) -> torch.Tensor:
        with torch.no_grad(), sampling_copy.predictor(hooked) as predict:
            return predict(latents, 500, prompts)

    names = [name for name in tiny_base.tensors() if "attn2" in name and name.startswith("unet.")]
    plain, first = predicted(), len(compilations)
    tiny_base.swap(changed(tiny_base, 0, *names))
    edited = predicted()
    with torch.no_grad():
        assert torch.equal(edited, tiny_base.denoiser(latents, 500, prompts))
    tiny_base.swap(None)
    assert torch.equal(predicted(), plain) and not torch.equal(edited, plain)
    assert len(compilations) == first > 0
    (layer, *_) = sampling_copy.denoiser.cross_attention_projections()
    handle = layer.register_forward_hook(lambda module, inputs, output: output + 1)
    assert not torch.equal(predicted(hooked=True), plain)
    handle.remove()
    assert torch.equal(predicted(), plain)
