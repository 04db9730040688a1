"""TIES: merging changes of weights that were made independently (Yadav et al., NeurIPS 2023, arXiv 2306.01708).

    trim     of each change only the largest `keep_share` of its entries stay, by magnitude
    elect    each entry's sign is that of the sum of what stayed
    merge    the mean of those that have this sign, times `scale`

Pure functions of tensors.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Change = Mapping[str, Tensor]


def ties_merge(changes: Sequence[Change], keep_share: float, scale: float) -> dict[str, Tensor]:
    """One change of all of them; a tensor that a change lacks counts as unchanged by it. fp32 in, fp32 out."""
    trimmed = [trim(change, keep_share) for change in changes]
    names = dict.fromkeys(name for change in changes for name in change)
    return {name: scale * _merged([each[name] for each in trimmed if name in each]) for name in names}


def trim(change: Change, keep_share: float) -> dict[str, Tensor]:
    """The largest `keep_share` of all entries of all tensors together, of equal ones the first; the others become 0."""
    sizes = torch.cat([value.abs().flatten() for value in change.values()])
    count = max(1, int(keep_share * len(sizes)))
    least = sizes.kthvalue(len(sizes) - count + 1).values
    kept, equal = sizes > least, sizes == least
    kept |= equal & (equal.cumsum(dim=0) <= count - kept.sum())
    parts = kept.split([value.numel() for value in change.values()])
    pairs = zip(change.items(), parts, strict=True)
    return {name: torch.where(part.view_as(value), value, 0.0) for (name, value), part in pairs}


def _merged(values: Sequence[Tensor]) -> Tensor:
    """The mean, entry by entry, of what has the sign of the sum; 0 where the sum is."""
    stacked = torch.stack(list(values))
    agreeing = (stacked * stacked.sum(dim=0).sign()) > 0
    return (stacked * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
