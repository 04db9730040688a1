"""Erasers: small networks behind the cross-attentions of a denoiser, y + up(gelu(down(y))) of each one's output y.

Those of Receler (Huang et al., ECCV 2024, arXiv 2311.17717). An eraser is its attention's submodule `eraser` and acts
through a forward hook, so that every layer keeps its name. With `up` at zero, as it begins, the model is the base. It
is no linear map, so no weight can take it in: it stays beside the model, in a delta of kind `hook`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.models.denoiser import Denoiser

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")


class Eraser(nn.Module):
    """One bottleneck; down (rank, width) is drawn as torch draws linear layers, up (width, rank) is zero."""

    def __init__(self, width: int, rank: int, generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.down, self.up = (nn.Linear(*shape, device="meta") for shape in ((width, rank), (rank, width)))
        for part, shape in (("weight", (rank, width)), ("bias", (rank,))):
            drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            setattr(self.down, part, nn.Parameter(drawn.to(device)))
        for part, shape in (("weight", (width, rank)), ("bias", (width,))):
            setattr(self.up, part, nn.Parameter(torch.zeros(shape, device=device)))

    def forward(self, inputs: Tensor) -> Tensor:
        return erased(inputs, *(self.get_parameter(part) for part in PARTS))


def erased(inputs: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """What an eraser adds to (…, width)."""
    return F.linear(F.gelu(F.linear(inputs, down, down_bias)), up, up_bias)


def cross_attentions(denoiser: Denoiser) -> "dict[str, Attention]":
    """The cross-attentions by full name (`unet.….attn2`)."""
    named = denoiser.module.named_modules()
    return {f"{denoiser.component}.{name}": module for name, module in named if name.endswith("attn2")}


def add_erasers(denoiser: Denoiser, rank: int, generator: torch.Generator) -> dict[str, Eraser]:
    """Add a fresh eraser, with gradient, to every cross-attention; by its full name."""
    found = {}
    for name, attention in cross_attentions(denoiser).items():
        weight = attention.to_out[0].weight
        attention.add_module("eraser", Eraser(weight.shape[0], rank, generator, weight.device))
        attention.register_forward_hook(_add_eraser)
        found[name] = attention.eraser
    return found


def eraser_parameters(erasers: Mapping[str, Eraser]) -> dict[str, nn.Parameter]:
    """The trained tensors: `unet.….attn2.eraser.down.weight` and so on."""
    return {f"{name}.eraser.{part}": eraser.get_parameter(part) for name, eraser in erasers.items() for part in PARTS}


def fits(denoiser: Denoiser, tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of an eraser, of any rank, for each cross-attention, and nothing else."""
    attentions = cross_attentions(denoiser)
    if set(tensors) != {f"{name}.eraser.{part}" for name in attentions for part in PARTS}:
        return False
    for name, attention in attentions.items():
        shapes = [tuple(tensors[f"{name}.eraser.{part}"].shape) for part in PARTS]
        width, rank = len(attention.to_out[0].weight), shapes[1][0] if shapes[1] else 0
        if shapes != [(rank, width), (rank,), (width, rank), (width,)]:
            return False
    return True


@contextmanager
def erasers_attached(denoiser: Denoiser, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the erasers of these tensors, by the names of `eraser_parameters`, act on the denoiser."""
    handles = []

    def attach(attention: Any, parts: list[Tensor]) -> None:
        own = [part.to(attention.to_q.weight) for part in parts]
        handles.append(attention.register_forward_hook(lambda module, inputs, output: output + erased(output, *own)))

    try:
        for name, attention in cross_attentions(denoiser).items():
            attach(attention, [tensors[f"{name}.eraser.{part}"] for part in PARTS])
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_eraser(attention: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    # a plain function that knows nothing but its layer: deep copies and pickles of the model keep working
    eraser = attention.eraser
    assert isinstance(eraser, Eraser)
    return output + eraser(output)


def region_loss(outputs: Sequence[Tensor], elsewhere: Mapping[int, Tensor]) -> Tensor:
    """The erasers' mean square where the concept is not, the mean over layers.

    outputs: (B, pixels, width) of each; elsewhere: pixels -> (B, pixels), bool.
    """
    terms = []
    for output in outputs:
        mask = elsewhere[output.shape[1]]
        terms.append((output.square().mean(dim=2) * mask).sum() / (mask.sum() + 1e-9))
    return torch.stack(terms).mean()
