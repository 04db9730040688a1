"""Rank-r adapters on linear maps of a model: y = W x + alpha/rank * up(down(x)), the base weight W as it is.

An adapter is its layer's submodule `adapter` and acts through a forward hook, so that every layer keeps its name, and
copies, wrappers and optimisers find the adapter among the model's parameters. With `up` at zero the model is the base.
The tensors are those of a delta of kind `adapter`: `<full module name>.down`, `.up` and `.alpha`.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adapter(nn.Module):
    """One low-rank addition to an nn.Linear (d_in -> d_out) or to a 1x1 nn.Conv2d.

    `down` is (rank, d_in) and `up` is (d_out, rank), with two more dimensions of size 1 for a convolution.
    """

    alpha: Tensor
    scale: Tensor
    """alpha / rank, a tensor for what takes models of several ranks through one pass (`models/stacked_layers.py`)."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        d_out, d_in, *kernel = layer.weight.shape
        assert kernel in ([], [1, 1]), "adapters are for linear layers and 1x1 convolutions"
        # kaiming_uniform(a=sqrt(5)), as usual for adapters; on the CPU, so that the device does not matter
        bound = 1 / math.sqrt(d_in)
        down = torch.empty(rank, d_in, *kernel).uniform_(-bound, bound, generator=generator)
        device = layer.weight.device
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(d_out, rank, *kernel, device=device))
        self.register_buffer("alpha", torch.tensor(float(alpha), device=device))
        self.register_buffer("scale", torch.tensor(alpha / rank, device=device), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.down.ndim == 4:
            return self.scale * F.conv2d(F.conv2d(inputs, self.down), self.up)
        return self.scale * F.linear(F.linear(inputs, self.down), self.up)


class Adapters:
    """The adapters of one model, by the full name of their layer (`unet.….attn2.to_k`)."""

    def __init__(self, layers: Mapping[str, Adapter]) -> None:
        self.layers = dict(layers)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors, `<layer>.down` and `<layer>.up`."""
        return {f"{name}.{part}": getattr(a, part) for name, a in self.layers.items() for part in ("down", "up")}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a delta of kind `adapter`: the trainable ones, and every layer's `<layer>.alpha`."""
        alphas = {f"{name}.alpha": adapter.alpha for name, adapter in self.layers.items()}
        return {name: value.detach() for name, value in self.parameters().items()} | alphas


def add_adapters(
    modules: Mapping[str, nn.Module],
    names: Sequence[str],
    rank: int,
    alpha: float,
    generator: torch.Generator,
) -> Adapters:
    """Add a fresh adapter, with gradient, to each layer in `names` (full: `unet.` and the path in the UNet).

    `down` is drawn from `generator` in the order of `names`; `up` is zero.
    """
    layers = {}
    for name in names:
        root, path = name.split(".", 1)
        layer = modules[root].get_submodule(path)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        layers[name] = Adapter(layer, rank, alpha, generator)
        layer.add_module("adapter", layers[name])
        layer.register_forward_hook(_add_adapter)
    return Adapters(layers)


def _add_adapter(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    # a plain function that knows nothing but its layer: deep copies and pickles of the model keep working
    adapter = layer.adapter
    assert isinstance(adapter, Adapter)
    return output + adapter(inputs[0])
