"""Recorded cross-attention probabilities against those of diffusers' own unfused processor."""

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor

from efface.models.attention_maps import CrossAttentionMaps
from efface.models.base import Base
from efface.models.text.text_encoding import encode_prompts

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def reference(base: Base, name: str) -> torch.Tensor:
    """What diffusers multiplies with the values in the attention called `name`: (B, heads, pixels, tokens)."""
    attention = base.unet.get_submodule(name)
    caught: list[torch.Tensor] = []
    scores = attention.get_attention_scores

    def catch(*arguments: Any) -> torch.Tensor:
        caught.append(scores(*arguments))
        return caught[-1]

    attention.get_attention_scores = catch
    base.unet.set_attn_processor(AttnProcessor())
    base.denoiser(LATENTS, 500, encode_prompts(base, ["a cat", "a dog"]))
    return caught[0].unflatten(0, (2, attention.heads))


@torch.no_grad()
def test_they_are_those_that_diffusers_attends_with_and_the_prediction_keeps_its_bits(tiny_base: Base) -> None:
    conditioning = encode_prompts(tiny_base, ["a cat", "a dog"])
    before = tiny_base.denoiser(LATENTS, 500, conditioning)
    maps = CrossAttentionMaps(tiny_base.denoiser)
    with maps:
        assert torch.equal(tiny_base.denoiser(LATENTS, 500, conditioning), before)
    layers = dict(maps.by_layer)
    assert len(layers) == 4 and all(name.endswith("attn2") for name in layers)
    tiny_base.denoiser(torch.zeros_like(LATENTS), 1, conditioning)
    assert all(maps.by_layer[name] is value for name, value in layers.items())  # outside of the block nothing is kept
    maps.close()
    for name, probabilities in layers.items():
        torch.testing.assert_close(probabilities, reference(tiny_base, name), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(probabilities.shape[:-1]))
