"""A network that methods edit: the module, its names, its copy, and what wraps it for several processes.

A copy holds nothing twice but what is changed: beside a frozen teacher a student takes the memory of what it trains.
"""

import copy
from collections.abc import Iterable
from typing import Any, Self

from torch import nn


class Network:
    """One component of a base."""

    component: str
    """The first part of its parameters' full names."""

    def __init__(self, module: nn.Module) -> None:
        """module: the network, or what wraps it for several processes."""
        self.module: Any = module

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The edited modules by the first part of their parameters' full names."""
        return {self.component: self.module}

    def copy(self) -> Self:
        """A copy to be edited, without gradient: its values are this network's own until `own` is called."""
        return type(self)(sharing_copy(self.module))

    def own(self, changed: Iterable[nn.Parameter]) -> None:
        """Give these parameters of a copy values of their own, before they are changed; all others stay shared."""
        for parameter in changed:
            parameter.data = parameter.data.clone()

    def checkpoint_gradients(self) -> None:
        """Make activations again in the backward pass, from now on."""
        self.module.enable_gradient_checkpointing()

    def wrapped(self, wrap: nn.Module) -> Self:
        """The same, called through what wraps the network for several processes."""
        return type(self)(wrap)


def sharing_copy(module: Any) -> Any:
    """A copy of a module, with parameters of its own that share the values of the other's."""
    parameters = {id(p): nn.Parameter(p.data, requires_grad=False) for p in module.parameters()}
    buffers = {id(buffer): buffer for buffer in module.buffers()}
    return copy.deepcopy(module, {**parameters, **buffers})
