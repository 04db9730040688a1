"""The first token of a prompt, which all prompts share: no gradient through what a cross-attention makes of it."""

from typing import Any

import torch
from torch import Tensor, nn

from efface.models.denoiser import Denoiser


def detach_first_token(denoiser: Denoiser) -> None:
    """Stop the gradient through keys and values of token 0 in every cross-attention; values keep their bits.

    Hooks on `to_k` and `to_v`, so that it holds for every attention backend.
    """
    for projection in denoiser.cross_attention_projections():
        projection.register_forward_hook(_detach)


def _detach(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """(B, tokens, C) with no gradient through the first token."""
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)
