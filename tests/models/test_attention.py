"""The attention backend: what is asked for, what is used, and that nobody's processor is thrown away."""

import warnings
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from efface.models.attention import set_attention
from efface.models.base import Base


class Mine(AttnProcessor2_0):
    """A processor of some method's own."""


def predict(base: Base) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 16, generator=generator)
    with torch.no_grad():
        return base.unet(x, 500, c).sample


def test_sdpa_is_reported_as_it_is_used(tiny_base: Base) -> None:
    tiny_base.unet.set_attn_processor(AttnProcessor())
    before = predict(tiny_base)
    report = set_attention(tiny_base.unet, "sdpa")
    layers = len(tiny_base.unet.attn_processors)
    expected = {"asked": "sdpa", "used": "sdpa", "processors": {"AttnProcessor2_0": layers}, "milliseconds": None}
    assert report == expected
    torch.testing.assert_close(predict(tiny_base), before, atol=1e-5, rtol=1e-5)


def test_auto_on_a_cpu_is_sdpa_without_a_word(tiny_base: Base) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set_attention(tiny_base.unet, "auto")["used"] == "sdpa"


def test_xformers_on_a_cpu_falls_back_with_one_warning(tiny_base: Base) -> None:
    with pytest.warns(UserWarning) as caught:
        report = set_attention(tiny_base.unet, "xformers")
    assert [str(warning.message) for warning in caught] == [
        "attention by xformers is not to be had (it has no kernel for 'cpu'); using sdpa"
    ]
    assert (report["asked"], report["used"]) == ("xformers", "sdpa")


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_a_processor_of_ones_own_stays(tiny_base: Base, backend: Any) -> None:
    processors = dict(tiny_base.unet.attn_processors)
    name = next(iter(processors))
    mine = Mine()
    tiny_base.unet.set_attn_processor({**processors, name: mine})
    report = set_attention(tiny_base.unet, backend)
    assert tiny_base.unet.attn_processors[name] is mine
    assert report["processors"] == {"Mine": 1, "AttnProcessor2_0": len(processors) - 1}
