"""SPEED: Scalable, Precise, and Efficient Concept Erasure (Li et al., ICLR 2026, arXiv 2503.07392).

For the value projection W of every text cross-attention, with targets t_i and anchors a_i (n of them), what is retained
r_j, and invariants K:

    T = 1/n sum_i t_i t_i^T        A = 1/n sum_i a_i t_i^T
    P = U U^T                      U: the eigenvectors of mean_j r_j r_j^T with an eigenvalue below `threshold`
    W <- W + W (A - T) N           N: see `train/closed_form.py`, with M = (T P + s I)^-1
                                   N = P ( I - M K (K^T P M K + lambda I)^-1 K^T P ) M

so that W t_i goes to W a_i, within the null space of what is retained, while W K stays. K is the first token, which all
prompts share, and the centres of three clusters of the empty prompt's other tokens. The r_j are chosen for every layer:

- *filter*: those that the edit without constraint, E = W (A - T) (I + T)^-1, moves by more than the mean of || E r ||;
- *augmentation*: of each, `augmentations` copies r + z v, z standard normal, along the direction v that W sees least;
  of these again those that E moves by more than their mean.

`sequential` is CEASE (arXiv 2610.01989, from a description of it) for a list or chain of concepts: one edit after
another, each on the weight that the one before left, with two kinds of further invariants: its anchors, and the
directions that earlier changes read, so that no change is seen by what another one edited. CEASE projects a solved
change to the complement of these; as constraints of the solve they leave the other invariants in place too. Without
it several concepts, and a chain, are one solve from the base.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.models.parameter_groups import select
from efface.train.closed_form import invariant_solve, row_basis, used_basis
from efface.train.data.concept_keys import EditConfig, EditKeys, Tokens, edit_keys, encode
from efface.train.method import ClosedFormMethod, UnlearningTask, register
from efface.train.seeds import generator


class SPEEDConfig(EditConfig):
    layers: Literal["v", "kv"] = Field("v", description="projections edited: values (authors), or keys too")
    tokens: Tokens = Field(
        "last-subject", description="token positions edited and retained; authors: nudity 'whole', else 'last-subject'"
    )
    threshold: float = Field(
        0.1, gt=0, description="eigenvalue from which retained keys use a direction; authors 0.1, many concepts 1e-4"
    )
    ridge: float = Field(1.0, gt=0, description="s, the price of change; authors 1, 10 celebrities 0.05, nudity 0.7")
    invariant_ridge: float = Field(
        0.0, ge=0, description="lambda, 0: invariants do not move at all; authors 0, nudity 0.5"
    )
    clusters: int = Field(3, ge=0, description="centres of the empty prompt's tokens among the invariants; authors 3")
    filter: bool = Field(True, description="of retained keys those the edit moves most; authors: no for celebrities")
    augmentations: int = Field(10, ge=0, description="perturbed copies of each retained key; authors 10")
    sequential: bool = Field(False, description="one concept after another, as in CEASE, see above")


@register("speed")
class SPEED(ClosedFormMethod):
    """Values of a concept made those of its anchor, within the null space of all that is retained."""

    Config = SPEEDConfig
    config: SPEEDConfig
    version = 2
    strategies = frozenset({"single", "multi", "continual"})
    draws = True

    @property
    def group(self) -> str:
        return f"{self.config.layers}-xattn"

    def solve(self, task: UnlearningTask) -> dict[str, Tensor]:
        requests = [(concept,) for concept in task.concepts] if self.config.sequential else [task.concepts]
        keys = [edit_keys(self.config, task, self.config.tokens, concepts) for concepts in requests]
        empty = encode(task.base, [""])[""].embedding
        invariants = torch.cat([empty[:1], cluster_centres(empty[1:], self.config.clusters)]).double()
        if not len(keys[0].preserved):  # as the authors do, the empty prompt is what is retained
            keys = [replace(request, preserved=empty[1:]) for request in keys]
        return {
            name: self.edit(weight.double(), keys, invariants, generator(task.seed, "speed", name)).float()
            for name, weight in select(task.base, self.group).items()
        }

    def edit(self, weight: Tensor, requests: list[EditKeys], invariants: Tensor, rng: torch.Generator) -> Tensor:
        """The edited weight (d_out, d)."""
        edited, read = weight, weight.new_zeros(0, weight.shape[1])
        for request in requests:
            held = torch.cat([invariants, request.guides.double(), read]) if self.config.sequential else invariants
            values, rows = self.change(edited, request, held, rng)
            edited = edited + values @ rows
            if self.config.sequential:
                read = torch.cat([read, row_basis(torch.linalg.qr(values).R @ rows, tolerance=1e-6)])
        return edited

    def change(self, weight: Tensor, edit: EditKeys, invariants: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """W (A - T) N, as two factors (d_out, n) and (n, d): what is wanted, and what it is wanted of."""
        scale = len(edit.keys) ** -0.5
        keys, guides = edit.keys.double() * scale, edit.guides.double() * scale  # so that sums are means
        wanted, gram = weight @ (guides - keys).T, keys @ keys.T
        unconstrained = wanted @ torch.linalg.solve(gram + torch.eye(len(gram)).to(gram), keys)  # E
        used = used_basis(self.retained(weight, unconstrained, edit.preserved.double(), rng), self.config.threshold)
        return wanted, invariant_solve(keys, used, invariants, self.config.ridge, self.config.invariant_ridge)

    def retained(self, weight: Tensor, unconstrained: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
        """The retained keys of this layer, filtered by what E = `unconstrained` moves, and augmented, (m, d)."""
        if self.config.filter:
            rows = moved_most(rows, unconstrained)
        if self.config.augmentations and len(rows):
            copies = rows.repeat_interleave(self.config.augmentations, dim=0)
            noise = torch.randn(len(copies), 1, generator=rng, dtype=torch.float64).to(rows.device)
            rows = torch.cat([rows, moved_most(copies + noise * least_seen(weight), unconstrained)])
        return rows


def moved_most(rows: Tensor, change: Tensor) -> Tensor:
    """Those of `rows` (m, d) that `change` (d_out, d) moves by more than their mean; all where it moves all alike."""
    moved = (rows @ change.T).norm(dim=1)
    most = moved > moved.mean()
    return rows[most] if most.any() else rows


def least_seen(weight: Tensor) -> Tensor:
    """The right singular vector (d,) of the smallest of the min(d_out, d) singular values of `weight` (d_out, d)."""
    if weight.shape[0] < weight.shape[1]:
        least = weight.T @ torch.linalg.eigh(weight @ weight.T)[1][:, 0]
        return least / least.norm()
    return torch.linalg.eigh(weight.T @ weight)[1][:, 0]


def cluster_centres(rows: Tensor, count: int, rounds: int = 100) -> Tensor:
    """Centres (count, d) of Lloyd's k-means of `rows` (n, d), from the row farthest from all centres so far.

    Nothing is drawn, so that the invariants are the same for every seed.
    """
    centres = rows[:count].new_zeros(0, rows.shape[1])
    for _ in range(count):
        distance = torch.cdist(rows, centres).amin(dim=1) if len(centres) else (rows - rows.mean(dim=0)).norm(dim=1)
        centres = torch.cat([centres, rows[distance.argmax()][None]])
    for _ in range(rounds if count else 0):
        nearest = torch.cdist(rows, centres).argmin(dim=1)
        groups = [rows[nearest == k] for k in range(count)]
        moved = torch.stack([group.mean(dim=0) if len(group) else centres[k] for k, group in enumerate(groups)])
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
