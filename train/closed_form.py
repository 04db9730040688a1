"""Closed-form edits of a linear map: pure functions of keys (text embeddings) and values (what a layer makes of them).

Four solutions, from which the methods without training are made.

    ridge_solve         keys go where they should, at a price of change (UCE, RECE, MACE)
    invariant_solve     the same in a null space, with some keys held exactly (SPEED)
    project_out         the part of some keys that others do not explain is taken away (Double Projections)
    nearest_rotation    the orthogonal map that agrees best with a matrix (OCE)

Where every value is W times another key, v = W c*, the edit is one map of the keys: it serves all layers that read
them, and is solved once, for W = I. Everything is fp64: text embeddings share a large mean, so that their second
moment is ill-conditioned.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """What the ridge solve needs to know of its keys (n of them, in `d_in` dimensions) and values (`d_out`).

    Those of several concepts are the sum of theirs: editing many at once, or one more later from the same W0, is one
    solve over the sum.
    """

    value_key: Tensor  # sum s v c^T, (d_out, d_in)
    key_key: Tensor  # sum s c c^T, (d_in, d_in)

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.value_key + other.value_key, self.key_key + other.key_key)


def key_statistics(
    keys: Tensor, values: Tensor, strength: float = 1.0, dtype: torch.dtype = torch.float64
) -> Statistics:
    """Statistics of keys (n, d_in) that should map to values (n, d_out), each counted `strength` times.

    `ridge_solve` works in the same `dtype`.
    """
    keys, values = keys.to(dtype), values.to(dtype)
    return Statistics(strength * values.T @ keys, strength * keys.T @ keys)


def ridge_solve(weight: Tensor, statistics: Statistics, ridge: float) -> Tensor:
    """W = ( ridge W0 + sum_i s_i v_i c_i^T ) ( ridge I + sum_i s_i c_i c_i^T )^-1, (d_out, d_in).

    The minimiser of  sum_i s_i || W c_i - v_i ||^2 + ridge || W - W0 ||_F^2  (UCE, arXiv 2308.14761, eq. 7), in the
    dtype of `statistics`. A key that is erased gets the value of another key, one that is preserved has its own.
    Solved by Cholesky factors for the difference to `weight`: with nothing to change it is `weight` exactly.

    Raises torch.linalg.LinAlgError where the sum is singular; `ridge` > 0 excludes that.
    """
    key_key = statistics.key_key
    before = weight.to(key_key)
    residual = statistics.value_key - before @ key_key
    gram = key_key + ridge * torch.eye(len(key_key), dtype=key_key.dtype, device=key_key.device)
    change = torch.cholesky_solve(residual.T, torch.linalg.cholesky(gram)).T
    return before + change


def row_basis(rows: Tensor, tolerance: float = 1e-10) -> Tensor:
    """An orthonormal basis (r, d) of the span of `rows` (n, d), without directions that are rounding alone.

    These are directions whose singular value is at most `tolerance` of the largest.
    """
    _, singular, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    return basis[singular > tolerance * singular[:1]]


def used_basis(rows: Tensor, threshold: float) -> Tensor:
    """An orthonormal basis U (r, d) of the directions that `rows` r_i (n, d) use; the others are their null space.

    U are the eigenvectors of mean_i r_i r_i^T with an eigenvalue of `threshold` and more (SPEED, arXiv 2503.07392).
    """
    rows = rows.double()
    if len(rows) < rows.shape[1]:  # all others have the eigenvalue 0
        _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
        return directions[singular.square() / len(rows) >= threshold]
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return vectors.T[values >= threshold]


def invariant_solve(keys: Tensor, used: Tensor, invariants: Tensor, ridge: float, invariant_ridge: float) -> Tensor:
    """What the change of a weight reads in place of `keys` t_i (n, d), so that what must stay does: t_i^T N, (n, d).

        N = Q - Q K ( K^T Q K + invariant_ridge I )^-1 K^T Q,        Q = P ( T P + ridge I )^-1

    with T = sum_i t_i t_i^T, P = I - U^T U for a basis U (r, d) of what is `used`, and the columns K of `invariants`
    (k, d). For values W a_i, the change X = sum_i W (a_i - t_i) t_i^T N minimises
    sum_i || (W + X) t_i - W a_i ||^2 + ridge ||X||_F^2 among all X = X P with X K = 0; with
    `invariant_ridge` > 0 the last is bought at a price instead.

    Solved without a (d, d) matrix: with the rows t_i^T as A,  A Q = ( A P A^T + ridge I )^-1 A P  and
    K^T Q = ( K^T P - K^T P A^T A Q ) / ridge.
    """
    used = used.double()
    free, held = (rows - (rows @ used.T) @ used for rows in (keys.double(), invariants.double()))
    gram = free @ free.T + ridge * torch.eye(len(free), dtype=free.dtype, device=free.device)
    read = torch.cholesky_solve(free, torch.linalg.cholesky(gram))
    moved = (held - (held @ free.T) @ read) / ridge
    # where an invariant is outside the null space already, its row and column are rounding, which 1e-10 leaves out
    price = moved @ held.T + invariant_ridge * torch.eye(len(held), dtype=held.dtype, device=held.device)
    return read - (read @ held.T) @ torch.linalg.pinv(price, rtol=1e-10, hermitian=True) @ moved


def project_out(keys: Tensor, proxies: Tensor, preserved: Tensor, ridge: float) -> Tensor:
    """M (d, d), such that W M maps `keys` (n, d) to what W made of `proxies` (n, d), and `preserved` to themselves.

        M = I + (C* - C)^T ( H H^T + ridge I )^-1 H,        H = C (I - B^T B)

    for the rows C of the keys, C* of the proxies, B (r, d) an orthonormal basis of what is preserved. Exact for
    `ridge` 0 where the rows of H are independent; else the nearest, of the smallest norm.
    """
    keys, proxies, basis = keys.double(), proxies.double(), preserved.double()
    unexplained = keys - keys @ basis.T @ basis
    gram = unexplained @ unexplained.T + ridge * torch.eye(len(keys), dtype=torch.float64, device=keys.device)
    change = (proxies - keys).T @ torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ unexplained
    return torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device) + change


def nearest_rotation(matrix: Tensor, reflections: bool = False) -> Tensor:
    """The Q (d, d) with Q^T Q = I and det Q = 1 that maximises <Q, matrix> = tr(Q^T matrix).

    Q = U S V^T for the singular value decomposition U D V^T; S is I but for the last entry, of the smallest singular
    value, which is -1 where U V^T alone would be a reflection (orthogonal Procrustes, as Kabsch solved it). With
    `reflections` it may be one.
    """
    left, _, right = torch.linalg.svd(matrix.double())
    if not reflections and torch.linalg.det(left @ right) < 0:
        left[:, -1] *= -1
    return left @ right
