"""Rank-r adapters for several concepts on the same layers, of which one acts at a time: y = W x + up_i (down_i x).

Each concept's adapter is trained as if it were alone: while concept i acts, the others' rows are multiplied by zero, so
that they take part in the pass with a gradient of zero, as process groups expect.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.models.adapters import Adapter
from efface.models.denoiser import Denoiser


class ConceptAdapters:
    """The adapters of one model, by the full name of their weight (`unet.….attn2.to_k.weight`)."""

    def __init__(
        self, denoiser: Denoiser, weights: Sequence[str], concepts: int, rank: int, rng: torch.Generator
    ) -> None:
        """Adds them to the model. `down` is normal with standard deviation 1 / rank, `up` is zero."""
        self.layers: dict[str, Adapter] = {}
        self.rank, self.concepts = rank, concepts
        self.active: int | None = 0
        """The concept whose adapters act; None: no adapter does."""
        for name in weights:
            root, path = name.removesuffix(".weight").split(".", 1)
            layer = denoiser.modules[root].get_submodule(path)
            assert isinstance(layer, nn.Linear)
            adapter = Adapter(layer, rank * concepts, rank * concepts, rng)
            with torch.no_grad():
                adapter.down.copy_(torch.randn(adapter.down.shape, generator=rng) / rank)
            self.layers[name] = adapter
            layer.add_module("adapter", adapter)
            layer.register_forward_hook(self._add)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors of all concepts: `down` and `up` of each weight's layer."""
        return {
            f"{name.removesuffix('.weight')}.{part}": getattr(adapter, part)
            for name, adapter in self.layers.items()
            for part in ("down", "up")
        }

    def changes(self, weight: str) -> list[Tensor]:
        """What each concept's adapter adds to a weight, (d_out, d_in) fp64."""
        return [up @ down for up, down in self.factors(weight)]

    def factors(self, weight: str) -> list[tuple[Tensor, Tensor]]:
        """Each concept's `up`, (d_out, rank), and `down`, (rank, d_in), of a weight, fp64."""
        adapter = self.layers[weight]
        downs, ups = adapter.down.detach().double(), adapter.up.detach().double()
        parts = [slice(i * self.rank, (i + 1) * self.rank) for i in range(self.concepts)]
        return [(ups[:, part], downs[part]) for part in parts]

    def _add(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self.active is None:
            return output
        adapter = layer.adapter
        assert isinstance(adapter, Adapter)
        gate = torch.zeros(self.concepts, self.rank, device=output.device, dtype=output.dtype)
        gate[self.active] = 1
        return output + F.linear(F.linear(inputs[0], adapter.down) * gate.flatten(), adapter.up)
