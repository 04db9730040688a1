"""The probabilities of a denoiser's cross-attention, recorded while it predicts: what re-steering and masks look at.

Whatever kernel attends, forward hooks take its queries and keys and compute softmax(q k^T / sqrt(d)) beside it, so the
prediction keeps its bits. Gradients flow through what is recorded.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.models.denoiser import Denoiser


class CrossAttentionMaps:
    """Records within a `with` block; a block starts from nothing.

        with maps:
            predict(latents, timestep, conditioning)
        maps.by_layer["down_blocks.0.attentions.0.transformer_blocks.0.attn2"]

    Of two predictions in one block the later counts. `close` takes the hooks off the denoiser.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.by_layer: dict[str, Tensor] = {}
        """(B, heads, pixels, tokens) fp32 of each cross-attention, by its name in the network."""
        self._recording = False
        self._handles: list[Any] = []
        for name, attention in denoiser.module.named_modules():
            if name.endswith("attn2"):
                self._watch(name, attention)

    def __enter__(self) -> "CrossAttentionMaps":
        self.by_layer, self._recording = {}, True
        return self

    def __exit__(self, *error: object) -> None:
        self._recording = False

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, attention: Any) -> None:
        seen: dict[str, Tensor] = {}

        def keep(part: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                if self._recording or torch.is_grad_enabled():
                    seen[part] = output

            return hook

        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            # a backward pass under gradient checkpointing comes by again, and has to find the same operations
            if self._recording or torch.is_grad_enabled():
                query, key = (seen.pop(part).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in "qk")
                scores = query.float() @ key.float().transpose(-1, -2) * attention.scale
                probabilities = scores.softmax(dim=-1)
                if self._recording:
                    self.by_layer[name] = probabilities

        self._handles += [
            attention.to_q.register_forward_hook(keep("q")),
            attention.to_k.register_forward_hook(keep("k")),
            attention.register_forward_hook(record),
        ]


def concept_region(
    maps: Sequence[Tensor], words: Sequence[int], pixels: int, latent_side: int, threshold: float
) -> Tensor:
    """Where the words are attended to, (B, pixels), bool.

    maps: (B, heads, pixels, tokens) of each layer; those whose side is nearest to a quarter of the latents' count.
    """
    sides = {round(layer.shape[2] ** 0.5) for layer in maps}
    side = min(sides, key=lambda side: (abs(side - latent_side / 4), side))
    chosen = [layer[..., list(words)].mean(dim=(1, 3)) for layer in maps if layer.shape[2] == side**2]
    mean = torch.stack(chosen).mean(dim=0)
    least, most = mean.amin(dim=1, keepdim=True), mean.amax(dim=1, keepdim=True)
    there = (mean - least) / (most - least).clamp(min=1e-12) >= threshold
    wanted = round(pixels**0.5)
    grid = there.float().view(-1, 1, side, side)
    return F.interpolate(grid, (wanted, wanted)).flatten(1).bool()
