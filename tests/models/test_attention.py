"""The attention backend: what is requested, what is used, and that nobody's processor is thrown away."""

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models import attention_processor
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor
from torch.nn.attention import SDPBackend

from efface.models import attention
from efface.models.attention import PROCESSORS, set_attention, shapes
from efface.models.base import Base, architecture
from efface.models.loading import empty_components


class Mine(AttnProcessor2_0):
    """A processor of some method's own."""


@pytest.fixture(autouse=True)
def _warned_of_nothing() -> Iterator[None]:
    attention._warned.clear()
    yield
    attention._warned.clear()


def by_hand(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any = None, op: Any = None, scale: float = 1) -> Tensor:
    """xformers' attention as it is defined; (B * heads, tokens, d)."""
    return torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1) @ v


@pytest.fixture
def with_xformers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """xformers as if it had a CPU kernel; the shapes of the queries it got."""
    requested = []

    def attend(q: Tensor, *arguments: Any, **options: Any) -> Tensor:
        requested.append(tuple(q.shape))
        return by_hand(q, *arguments, **options)

    monkeypatch.setattr(
        attention_processor, "xformers", SimpleNamespace(ops=SimpleNamespace(memory_efficient_attention=attend))
    )
    return requested


@pytest.fixture
def without_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_processor, "xformers", None)


def predict(base: Base) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 16, generator=generator)
    with torch.no_grad():
        return base.unet(x, 500, c).sample


def classes(base: Base) -> set[str]:
    return {type(processor).__name__ for processor in base.unet.attn_processors.values()}


def test_sdpa_is_reported_as_it_is_used(tiny_base: Base) -> None:
    tiny_base.unet.set_attn_processor(AttnProcessor())
    before = predict(tiny_base)
    report = set_attention(tiny_base.unet, "sdpa")
    layers = len(tiny_base.unet.attn_processors)
    expected = {"requested": "sdpa", "used": "sdpa", "processors": {"AttnProcessor2_0": layers}, "milliseconds": None}
    assert report.model_dump() == expected
    torch.testing.assert_close(predict(tiny_base), before, atol=1e-5, rtol=1e-5)


def test_diffusers_own_switch_leaves_the_processors_as_they_are(tiny_base: Base) -> None:
    """Why processors are replaced here. Where this fails, diffusers has changed."""
    before = dict(tiny_base.unet.attn_processors)
    tiny_base.unet.set_attention_backend("_native_math")
    tiny_base.unet.set_attention_backend("native")
    assert tiny_base.unet.attn_processors == before
    assert not any(hasattr(processor, "_attention_backend") for processor in before.values())


def test_xformers_reaches_every_layer(tiny_base: Base, with_xformers: list[tuple[int, ...]]) -> None:
    before = predict(tiny_base)
    report = set_attention(tiny_base.unet, "xformers")
    layers = len(tiny_base.unet.attn_processors)
    assert (report.used, report.processors) == ("xformers", {"XFormersAttnProcessor": layers})
    with_xformers.clear()
    torch.testing.assert_close(predict(tiny_base), before, atol=1e-5, rtol=1e-5)
    assert len(with_xformers) == layers


def test_flash_reaches_every_layer(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    before = predict(tiny_base)
    report = set_attention(tiny_base.unet, "flash")
    assert report.used == "flash" and set(report.processors) == {"FlashAttnProcessor"}
    orders, really = [], attention.sdpa_kernel

    def noted(kernels: Any, **options: Any) -> Any:
        orders.append((kernels[0], options))
        return really(kernels, **options)

    monkeypatch.setattr(attention, "sdpa_kernel", noted)
    torch.testing.assert_close(predict(tiny_base), before, atol=1e-5, rtol=1e-5)
    layers = len(tiny_base.unet.attn_processors)
    assert orders == [(SDPBackend.FLASH_ATTENTION, {"set_priority": True})] * layers


def test_every_backend_can_be_left_for_another(tiny_base: Base, with_xformers: list[tuple[int, ...]]) -> None:
    for processor in PROCESSORS.values():
        tiny_base.unet.set_attn_processor(processor())
        set_attention(tiny_base.unet, "sdpa")
        assert classes(tiny_base) == {"AttnProcessor2_0"}


def test_auto_on_a_cpu_is_sdpa_without_a_word(tiny_base: Base) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set_attention(tiny_base.unet, "auto").used == "sdpa"


def test_auto_on_a_gpu_is_the_fastest_of_those_that_work(
    tiny_base: Base, with_xformers: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = []

    def timed(kernels: dict[str, Any], device: torch.device, dtype: torch.dtype, where: Any) -> dict[str, float]:
        requested.append((sorted(kernels), device.type, dtype, where))
        return {"sdpa": 2.0, "flash": 3.0, "xformers": 1.5}

    monkeypatch.setattr(UNet2DConditionModel, "device", torch.device("cuda"))
    monkeypatch.setattr(attention, "unsupported_reason", lambda name, *_: "no kernel" if name == "cudnn" else None)
    monkeypatch.setattr(attention, "milliseconds", timed)
    report = set_attention(tiny_base.unet, "auto")
    assert requested == [(["flash", "sdpa", "xformers"], "cuda", torch.float32, ((2, 64, 8),))]
    assert report.used == "xformers" and set(report.processors) == {"XFormersAttnProcessor"}
    assert report.milliseconds == {"sdpa": 2.0, "flash": 3.0, "xformers": 1.5}


def test_the_shapes_that_cost_most_in_stable_diffusion() -> None:
    """64 x 64 latents: 4096 tokens of 320 channels, and 1024 of 640, in 8 heads."""
    unet, _, _ = empty_components(architecture("sd-v1-4"))
    assert shapes(unet) == ((8, 4096, 40), (8, 1024, 80))


@pytest.mark.usefixtures("without_xformers")
def test_without_xformers_sdpa_is_used_and_one_warning_says_so(tiny_base: Base) -> None:
    with pytest.warns(UserWarning) as caught:
        reports = [set_attention(tiny_base.unet, "xformers") for _ in range(3)]
    assert [str(warning.message) for warning in caught] == [
        "attention by xformers is not to be had (it is not installed); using sdpa"
    ]
    assert [(report.requested, report.used) for report in reports] == 3 * [("xformers", "sdpa")]
    assert classes(tiny_base) == {"AttnProcessor2_0"}


def test_under_autocast_a_backend_is_tried_in_the_dtype_it_will_meet(
    tiny_base: Base, with_xformers: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashAttention knows no fp32, in which trained weights are."""

    def lower_only(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dtype == torch.float32:
            raise NotImplementedError
        return q

    monkeypatch.setitem(attention.KERNELS, "flash", lower_only)
    assert set_attention(tiny_base.unet, "flash", torch.bfloat16).used == "flash"
    with pytest.warns(UserWarning, match="no kernel for torch.float32"):
        assert set_attention(tiny_base.unet, "flash").used == "sdpa"


@pytest.mark.parametrize("backend", ["xformers", "cudnn"])
def test_a_backend_without_a_kernel_for_the_cpu_falls_back(
    tiny_base: Base, backend: Any, with_xformers: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Tensor:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")

    monkeypatch.setattr(attention_processor.xformers.ops, "memory_efficient_attention", refuse)
    with pytest.warns(UserWarning) as caught:
        report = set_attention(tiny_base.unet, backend)
        assert set_attention(tiny_base.unet, backend, torch.bfloat16) == report
    assert [str(warning.message) for warning in caught] == [
        f"attention by {backend} is not to be had (it has no kernel for torch.float32 on 'cpu'); using sdpa"
    ]
    assert report.used == "sdpa" and classes(tiny_base) == {"AttnProcessor2_0"}


def test_a_backend_that_breaks_says_how(
    tiny_base: Base, with_xformers: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Tensor:
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(attention_processor.xformers.ops, "memory_efficient_attention", fail)
    with pytest.warns(UserWarning, match="it fails for torch.float32 on 'cpu': no kernel image is available\\); using"):
        set_attention(tiny_base.unet, "xformers")


@pytest.mark.parametrize("backend", ["auto", "sdpa", "flash", "xformers"])
def test_a_processor_of_ones_own_stays(tiny_base: Base, backend: Any, with_xformers: list[tuple[int, ...]]) -> None:
    processors = dict(tiny_base.unet.attn_processors)
    name = next(iter(processors))
    mine = Mine()
    tiny_base.unet.set_attn_processor({**processors, name: mine})
    report = set_attention(tiny_base.unet, backend)
    assert tiny_base.unet.attn_processors[name] is mine
    assert report.processors["Mine"] == 1 and sum(report.processors.values()) == len(processors)
