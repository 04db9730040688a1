"""Keys and values of the prompts, computed when the prompts change and not at every step.

Cross-attention projects the same encoded prompts to the same keys and values at each step of a batch. Within
`prompts_projected_once` its projections give back what they computed for these prompts before: the same numbers, bit
for bit, from the same operation. Only the projections themselves are remembered: forward hooks on them (adapters,
sampler hooks) and whatever processor attends still run at each step, and prompts that change from step to step are
projected as often as they change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from efface.models.denoiser import Denoiser


class RememberingLinear(nn.Linear):
    """A projection that knows its output for one input tensor. Layers become one, and nn.Linear again, in place."""

    prompts: Tensor | None
    projected: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if input is self.prompts:
            return self.projected
        return super().forward(input)


class ProjectedOnce(nn.Module):
    """A denoiser's network that is called as itself, from `attach` to `detach`."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.network = denoiser.module
        self._layers: list[Any] = []
        self._known = list(denoiser.cross_attention_projections())
        self._prompts: Tensor | None = None
        """The encoded prompts of the last pass."""

    def forward(self, latents: Tensor, timestep: Any, encoder_hidden_states: Tensor, **added: Any) -> Any:
        if not torch.is_grad_enabled():
            encoder_hidden_states = self._remembered(encoder_hidden_states)
        return self.network(latents, timestep, encoder_hidden_states, **added)

    def attach(self) -> None:
        self._layers = [layer for layer in self._known if type(layer) is nn.Linear]
        for layer in self._layers:
            layer.__class__, layer.prompts = RememberingLinear, None

    def detach(self) -> None:
        self.forget()
        for layer in self._layers:
            layer.__class__ = nn.Linear
            del layer.prompts

    def forget(self) -> None:
        """Weights have changed."""
        self._prompts = None
        for layer in self._layers:
            layer.prompts = None
            layer.__dict__.pop("projected", None)

    def _remembered(self, prompts: Tensor) -> Tensor:
        """The same prompts as the tensor whose projections are known."""
        before = self._prompts
        same_kind = before is not None and _kind(before) == _kind(prompts)
        if before is None or not same_kind or not torch.equal(before, prompts):
            self._prompts = before = prompts.clone()
            for layer in self._layers:
                layer.prompts, layer.projected = before, nn.Linear.forward(layer, before)
        return before


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


@contextmanager
def prompts_projected_once(denoiser: Denoiser) -> Iterator[Denoiser]:
    """The denoiser, which projects each batch of prompts once when it is called. Its weights must not change within."""
    network = ProjectedOnce(denoiser)
    network.attach()
    try:
        yield denoiser.wrapped(network)
    finally:
        network.detach()
