"""A network that methods edit: the module, its names, its copy, and what wraps it for several processes."""

import copy
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
        """A deep copy to be trained: fp32, in eval mode, without gradient."""
        return type(self)(copy.deepcopy(self.module).float().eval().requires_grad_(False))

    def checkpoint_gradients(self) -> None:
        """Make activations again in the backward pass, from now on."""
        self.module.enable_gradient_checkpointing()

    def wrapped(self, wrap: nn.Module) -> Self:
        """The same, called through what wraps the network for several processes."""
        return type(self)(wrap)
