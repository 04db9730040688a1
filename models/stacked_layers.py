"""Several edits of one network in one pass: layers that they differ in take the rows of each through its own weights.

The rows of M models, equally many of each, are one batch. Layers that all models share see that batch as any other, and
so run at its speed, whatever kernel they use. A layer with weights of its own in each model sees the rows as (M, B, …)
and has its weights stacked, (M, …): one batched product instead of M. Rows do not act on each other anywhere in a UNet,
so neither values nor gradients of one model depend on those beside it.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from efface.models.adapters import Adapter


class StackedLayers:
    """The layers of a module in which models differ."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        """names: of the parameters and buffers that every model has of its own, as the module names them."""
        parts: dict[str, list[str]] = {}
        for name in names:
            owner, _, part = name.rpartition(".")
            parts.setdefault(owner, []).append(part)
        self.layers = {owner: _StackedLayer(module.get_submodule(owner), of) for owner, of in parts.items()}
        self._held: list[Any] = []
        """Addresses and versions of the tensors that the layers hold stacks of, made without gradient."""

    @contextmanager
    def holding(self, models: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
        """Within it the module takes the rows of the first model, then those of the second, …, through their tensors.

        Gradients reach these tensors. Of adapters of several ranks, the smaller ones are filled up with zeros.
        """
        held = [(tensor.data_ptr(), tensor._version) for model in models for tensor in model.values()]
        if torch.is_grad_enabled() or held != self._held:
            for owner, layer in self.layers.items():
                layer.stack([[model[f"{owner}.{part}"] for part in layer.parts] for model in models])
            self._held = [] if torch.is_grad_enabled() else held
        try:
            for layer in self.layers.values():
                layer.layer.forward = layer.forward
            yield
        finally:
            for layer in self.layers.values():
                layer.layer.__dict__.pop("forward", None)
                if not self._held:
                    layer.stacked.clear()  # and with them what leads to the gradients


class _StackedLayer:
    """One layer, whose `forward` it replaces while it holds tensors; hooks stay around it."""

    def __init__(self, layer: nn.Module, parts: Sequence[str]) -> None:
        self.layer, self.parts = layer, parts
        self.flat = isinstance(layer, nn.Linear) or (isinstance(layer, Adapter) and layer.down.ndim == 2)
        self.bare: Any = copy.copy(layer)  # what computes one model's share: the layer without hooks
        self.bare._forward_hooks, self.bare._forward_pre_hooks = OrderedDict(), OrderedDict()
        self.bare._parameters, self.bare._buffers = dict(layer._parameters), dict(layer._buffers)
        self.count, self.stacked = 0, dict[str, Tensor]()

    def stack(self, models: Sequence[Sequence[Tensor]]) -> None:
        """Hold these: of each model its tensors, in the order of `parts`."""
        self.count = len(models)
        self.stacked = {part: _stack(own) for part, own in zip(self.parts, zip(*models, strict=True), strict=True)}

    def forward(self, inputs: Tensor) -> Tensor:
        inputs, stacked = self._autocast(inputs)
        rows = inputs.unflatten(0, (self.count, -1))
        if not self.flat:
            return vmap(self._of_one)(stacked, rows).flatten(0, 1)
        # as matrices: else vmap would repeat a model's weights for each of its rows
        return vmap(self._of_one)(stacked, rows.flatten(1, -2)).unflatten(1, rows.shape[1:-1]).flatten(0, 1)

    def _autocast(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs and weights as autocast has them for products, which it does not see within vmap."""
        device = inputs.device.type
        if not torch.is_autocast_enabled(device) or not isinstance(self.layer, nn.Linear | nn.Conv2d | Adapter):
            return inputs, self.stacked
        dtype = torch.get_autocast_dtype(device)
        return inputs.to(dtype), {name: own.to(dtype) if own.ndim > 1 else own for name, own in self.stacked.items()}

    def _of_one(self, tensors: dict[str, Tensor], rows: Tensor) -> Tensor:
        output: Tensor = functional_call(self.bare, tensors, (rows,))
        return output


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """(M, …); those that are smaller than the largest, in any dimension, with zeros at their ends."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return torch.stack([_padded(tensor, shape) for tensor in tensors])


def _padded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    if list(tensor.shape) == list(shape):
        return tensor
    missing = [full - own for full, own in zip(shape, tensor.shape, strict=True)]
    return F.pad(tensor, [size for each in reversed(missing) for size in (0, each)])
