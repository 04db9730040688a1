"""Double Projections: Closed-Form Concept Erasure via Double Projections (Zhang et al., CVPR 2026, arXiv 2604.10032).

Two projections, of the concept and of the change. With the keys c of the concept, g of its guide, and an orthonormal
basis B of those of what must stay (preserved concepts and guides):

    c* = g g^T c / (g^T g)                the proxy (`safe: guide`): what the concept's guide has of it
    c* = B^T B c                          or (`safe: preserved`) what all that must stay has of it
    W <- W + X,   X = X (I - B^T B)       the change: in the left null space of what must stay
    W c -> W c*                           in the least squares, with the price `ridge` || X ||_F^2

for every to_k and to_v of the text cross-attention. For `ridge` 0 this is W <- W (I - U^T U), with a basis U of the
parts h = c - c* that what must stay does not explain: exactly these are taken away, and no preserved key moves.

A re-implementation from the abstract and a description of it: the authors' code could not be had. Which subspace is the
safe one is our reading, as are the tokens. By either no preserved key moves.

Several concepts (`multi`) are one solve, and so are all requests of a chain (`continual`) so far, from the base.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.models.parameter_groups import select
from efface.train.closed_form import project_out, row_basis
from efface.train.data.concept_keys import EditConfig, Tokens, edit_keys
from efface.train.method import ClosedFormMethod, UnlearningTask, register


class DoubleProjectionsConfig(EditConfig):
    safe: Literal["guide", "preserved"] = Field(
        "guide", description="what a key is projected on to be its proxy: its guide, or the span of all that must stay"
    )
    tokens: Tokens = Field("last-subject", description="token positions edited and preserved")
    ridge: float = Field(0.0, ge=0, description="price of change; 0: the concept goes to its proxy exactly")
    tolerance: float = Field(
        1e-8,
        ge=1e-12,
        lt=1,
        description="share of the largest singular value of what must stay below which a direction of it may change",
    )


@register("double-projections")
class DoubleProjections(ClosedFormMethod):
    """What preserved concepts do not explain of a concept is projected out of keys and values."""

    Config = DoubleProjectionsConfig
    config: DoubleProjectionsConfig
    strategies = frozenset({"single", "multi", "continual"})

    @property
    def group(self) -> str:
        return "kv-xattn"

    def solve(self, task: UnlearningTask) -> dict[str, Tensor]:
        edit = edit_keys(self.config, task, self.config.tokens)
        kept = row_basis(torch.cat([edit.preserved, edit.guides]), self.config.tolerance)
        keys, guides = edit.keys.double(), edit.guides.double()
        if self.config.safe == "guide":
            proxies = guides * ((keys * guides).sum(dim=1) / guides.square().sum(dim=1))[:, None]
        else:
            proxies = keys @ kept.T @ kept
        transform = project_out(keys, proxies, kept, self.config.ridge)
        return {name: (weight.double() @ transform).float() for name, weight in select(task.base, self.group).items()}
