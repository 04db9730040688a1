"""ToMe: tokens of self-attention that are alike are merged (Bolya and Hoffman, CVPRW 2023, arXiv 2303.17604).

At the UNet's greatest resolution one token of each 2 x 2 stays; of the others, those most like a token that stays
become its mean with it, and after the attention each of them is given what that one has become. The authors draw the
tokens that stay at random; here it is the first of each four, so that an image depends on its seed alone. This changes
the image, so it is part of a recipe.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.models.denoiser import Denoiser


@dataclass(frozen=True)
class Matching:
    """Which tokens of (B, N, C) are merged; indices (B, …, 1)."""

    staying: Tensor
    """(n,): positions of the tokens that stay."""
    others: Tensor
    """(N - n,): positions of the others."""
    kept: Tensor
    """Of the others those that are not merged, by their place in `others`: (B, N - n - r, 1)."""
    merged: Tensor
    """And those that are: (B, r, 1)."""
    into: Tensor
    """The token of `staying` that each of these joins: (B, r, 1)."""

    def merge(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N - r, C): the others that are kept, then those that stay."""
        width = tokens.shape[-1]
        staying, others = tokens[:, self.staying], tokens[:, self.others]
        merged = others.gather(1, self.merged.expand(-1, -1, width))
        staying = staying.scatter_reduce(1, self.into.expand(-1, -1, width), merged, "mean", include_self=True)
        return torch.cat([others.gather(1, self.kept.expand(-1, -1, width)), staying], dim=1)

    def unmerge(self, tokens: Tensor) -> Tensor:
        """(B, N - r, C) -> (B, N, C): every token in its place."""
        batch, _, width = tokens.shape
        kept, staying = tokens.split([self.kept.shape[1], len(self.staying)], dim=1)
        others = tokens.new_empty(batch, len(self.others), width)
        others.scatter_(1, self.kept.expand(-1, -1, width), kept)
        others.scatter_(
            1, self.merged.expand(-1, -1, width), staying.gather(1, self.into.expand(-1, -1, width)).contiguous()
        )
        whole = tokens.new_empty(batch, len(self.staying) + len(self.others), width)
        whole[:, self.staying], whole[:, self.others] = staying, others
        return whole


def match(tokens: Tensor, side: int, ratio: float) -> Matching:
    """Of tokens (B, side^2, C), rows of an image, the share `ratio` that are most like one that stays, at most 3/4."""
    place = torch.arange(side * side, device=tokens.device)
    stays = (place // side % 2 == 0) & (place % side % 2 == 0)
    staying, others = place[stays], place[~stays]
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    likeness, nearest = (unit[:, others] @ unit[:, staying].transpose(1, 2)).max(dim=-1)
    count = min(int(side * side * ratio), len(others))
    order = likeness.argsort(dim=-1, descending=True, stable=True)[..., None]
    merged = order[:, :count]
    return Matching(staying, others, order[:, count:], merged, nearest[..., None].gather(1, merged))


@contextmanager
def tokens_merged(denoiser: Denoiser, ratio: float) -> Iterator[None]:
    """Within it self-attention at the greatest resolution is computed on fewer tokens; 0: nothing changes."""
    with ExitStack() as stack:
        if ratio:
            for block in (denoiser.module.down_blocks[0], denoiser.module.up_blocks[-1]):
                for attention in _self_attentions(block):
                    merging = _Merging(ratio)
                    stack.callback(attention.register_forward_pre_hook(merging.before).remove)
                    stack.callback(attention.register_forward_hook(merging.after).remove)
        yield


class _Merging:
    """Around one self-attention."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.matching: Matching | None = None

    def before(self, attention: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, *rest = inputs
        side = round(tokens.shape[1] ** 0.5)
        self.matching = match(tokens, side, self.ratio) if side * side == tokens.shape[1] and side % 2 == 0 else None
        return (self.matching.merge(tokens) if self.matching else tokens, *rest)

    def after(self, attention: Any, inputs: Any, output: Tensor) -> Tensor:
        return self.matching.unmerge(output) if self.matching else output


def _self_attentions(block: Any) -> Iterator[Any]:
    for name, module in block.named_modules():
        if name.endswith("attn1"):
            yield module
