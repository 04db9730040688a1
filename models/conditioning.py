"""What prompts become for the network that predicts noise: one row for each prompt."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """B rows. Methods index, join and repeat them, and never look at what a model family adds."""

    encoder_hidden_states: Tensor
    """(B, tokens, D): what cross-attention reads."""
    added: Mapping[str, Tensor] = field(default_factory=dict)
    """What the family adds, by diffusers' name for it, each (B, …): SDXL's `text_embeds` and `time_ids`."""

    def __len__(self) -> int:
        return len(self.encoder_hidden_states)

    def __getitem__(self, rows: int | slice | Sequence[int]) -> "Conditioning":
        """These rows; of one number a Conditioning of one row."""
        chosen = slice(rows, rows + 1 or None) if isinstance(rows, int) else rows
        return self._each(lambda tensor: tensor[chosen])

    def __iter__(self) -> Iterator["Conditioning"]:
        return (self[row] for row in range(len(self)))

    def expand(self, count: int) -> "Conditioning":
        """`count` rows of the same one; where there are so many already, these."""
        return self._each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def repeat_interleave(self, count: int) -> "Conditioning":
        """Every row `count` times, one after another."""
        return self._each(lambda tensor: tensor.repeat_interleave(count, dim=0))

    def to(self, target: torch.dtype | torch.device) -> "Conditioning":
        """On another device, or as another floating-point type."""
        return self._each(lambda tensor: tensor.to(target))

    @property
    def device(self) -> torch.device:
        return self.encoder_hidden_states.device

    @staticmethod
    def cat(parts: "Sequence[Conditioning]") -> "Conditioning":
        """The rows of all parts, which are of one family."""
        added = {name: torch.cat([part.added[name] for part in parts]) for name in parts[0].added}
        return Conditioning(torch.cat([part.encoder_hidden_states for part in parts]), added)

    def _each(self, change: Callable[[Tensor], Any]) -> "Conditioning":
        added = {name: change(tensor) for name, tensor in self.added.items()}
        return Conditioning(change(self.encoder_hidden_states), added)
