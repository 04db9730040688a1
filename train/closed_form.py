"""The closed-form edit of a linear map: where some keys should go, where others stay, how dear change is.

    W = ( ridge W0 + sum_i s_i v_i c_i^T ) ( ridge I + sum_i s_i c_i c_i^T )^-1

the minimiser over W of  sum_i s_i || W c_i - v_i ||^2 + ridge || W - W0 ||_F^2  (UCE, arXiv 2308.14761,
eq. 7). A key that is erased gets the value of another key, one that is preserved has its own (v = W0 c). Both
enter by the same two sums, which add up: the statistics of several concepts are the sum of theirs, so editing
many at once, or one more later from the same W0, is one solve over the sum.

Where every value is W0 times another key, v = W0 c*, one map serves all layers that read those keys: W = W0 T
with T the solution for W0 = I and values c*.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """What the solve needs to know of its keys (n of them, in `d_in` dimensions) and values (`d_out`)."""

    value_key: Tensor  # sum s v c^T, (d_out, d_in)
    key_key: Tensor  # sum s c c^T, (d_in, d_in)

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.value_key + other.value_key, self.key_key + other.key_key)


def key_statistics(
    keys: Tensor, values: Tensor, strength: float = 1.0, dtype: torch.dtype = torch.float64
) -> Statistics:
    """Statistics of keys (n, d_in) that should map to values (n, d_out), each counted `strength` times.

    Text embeddings share a large mean, so their second moment is ill-conditioned: the sums are taken in fp64
    unless asked otherwise, and `ridge_solve` works in the same `dtype`.
    """
    keys, values = keys.to(dtype), values.to(dtype)
    return Statistics(strength * values.T @ keys, strength * keys.T @ keys)


def ridge_solve(weight: Tensor, statistics: Statistics, ridge: float) -> Tensor:
    """The edited weight (d_out, d_in), in the dtype of `statistics`; `ridge` > 0 is the price of change.

    Solved by Cholesky factors for the difference to `weight`: with nothing to change it is `weight` exactly.
    """
    key_key = statistics.key_key
    before = weight.to(key_key)
    residual = statistics.value_key - before @ key_key
    gram = key_key + ridge * torch.eye(len(key_key), dtype=key_key.dtype, device=key_key.device)
    change = torch.cholesky_solve(residual.T, torch.linalg.cholesky(gram)).T
    return before + change
