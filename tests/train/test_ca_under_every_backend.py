"""CA's detached first token: no gradient goes through it, whichever processor computes the attention."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import attention_processor
from torch import Tensor

from efface.models.attention import PROCESSORS
from efface.models.base import Base
from efface.models.text.first_token import detach_first_token


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float = 1, **_: Any) -> Tensor:
    return torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1) @ v


def gradient(base: Base) -> Tensor:
    """Of the prediction's sum of squares by the prompt's embedding, (77, D)."""
    generator = torch.Generator().manual_seed(0)
    latents, embedding = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 16, generator=generator)
    embedding.requires_grad_(True)
    base.unet(latents, 500, embedding).sample.square().sum().backward()
    assert embedding.grad is not None
    return embedding.grad[0]


@pytest.mark.parametrize("backend", PROCESSORS)
def test_no_gradient_goes_through_the_first_token(
    backend: str, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = SimpleNamespace(memory_efficient_attention=attend)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops))
    tiny_base.unet.set_attn_processor(PROCESSORS[backend]())
    free = gradient(tiny_base)
    assert free[0].abs().sum() > 0
    detach_first_token(tiny_base.denoiser)
    held = gradient(tiny_base)
    assert torch.equal(held[0], torch.zeros_like(held[0]))
    # The other tokens' gradients are what they were: values keep their bits, and each token has its own path.
    torch.testing.assert_close(held[1:], free[1:], atol=1e-6, rtol=1e-4)
