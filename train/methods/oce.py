"""OCE: Orthogonal Concept Erasure for Diffusion Models (ICML 2026, arXiv 2605.28902).

The value projection W of every text cross-attention is turned by a rotation, W <- Q W. With orthonormal bases E of the
values W t_i of the concepts, and G of those of their anchors, Q maximises, by an orthogonal Procrustes solve,

    <Q, M>,   M = - s_e (I - G G^T) E E^T  +  s_p sum_p (W c_p) (W c_p)^T  +  s_g W C_g W^T  +  lambda W W^T

- `erase`: tr( (I - G G^T) Q E E^T ) is how much of the concepts' values Q leaves where no anchor is, and is made small;
- `preserve`: s_p || Q W c_p - W c_p ||^2 = const - 2 s_p <Q, (W c_p) (W c_p)^T>, for what is preserved;
- `general`: the same for any token, C_g being the mean of c c^T over everyday captions;
- `lambda`: the same for all inputs alike.

The authors' code has the erase term transposed, E E^T (I - G G^T): `erase_term: code`. Where concepts and anchors have
orthogonal values both are -s_e E E^T. A rotation keeps every norm: a concept is turned away, and not made smaller. The
scales are not normalised, and depend on the sizes of W and C_g.

Several concepts (`multi`) are one solve, and so are all requests of a chain (`continual`) so far, from the base.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.models.parameter_groups import select
from efface.train.closed_form import nearest_rotation, row_basis
from efface.train.data.captions import everyday_captions
from efface.train.data.concept_keys import EditConfig, Tokens, edit_keys, preserved, second_moment
from efface.train.method import ClosedFormMethod, UnlearningTask, register


class OCEConfig(EditConfig):
    layers: Literal["v", "kv"] = Field("v", description="projections turned: values (authors' code), or keys too")
    tokens: Tokens = Field("last-subject", description="token positions erased and preserved; authors 'last-subject'")
    erase_scale: float = Field(
        2000.0, gt=0, description="s_e; authors: object 2000, style 500, nudity 3000, 10 celebrities 3500, 100 800"
    )
    preserve_scale: float = Field(
        0.0, ge=0, description="s_p; authors: object and nudity 0, style 1, 10 celebrities 5, 100 2"
    )
    general_scale: float = Field(
        10.0, ge=0, description="s_g; authors: object and style 10, nudity 20, 10 celebrities 50, 100 70"
    )
    ridge: float = Field(10.0, ge=0, description="lambda, for all inputs alike; authors 10")
    general_captions: Literal["everyday", "preserved"] | tuple[str, ...] = Field(
        "everyday",
        description="whose tokens give C_g: everyday scenes, the preserved prompts, or these; authors: COCO's 30,000",
    )
    erase_term: Literal["derived", "code"] = Field("code", description="the order of its two factors, see above")


@register("oce")
class OCE(ClosedFormMethod):
    """Values turned by a rotation that leads away from the concept and holds the rest."""

    Config = OCEConfig
    config: OCEConfig
    strategies = frozenset({"single", "multi", "continual"})

    @property
    def group(self) -> str:
        return f"{self.config.layers}-xattn"

    def solve(self, task: UnlearningTask) -> dict[str, Tensor]:
        edit = edit_keys(self.config, task, self.config.tokens)
        general = second_moment(task.base, self.general_captions(task), task.cache)
        inputs = self.config.general_scale * general + self.config.ridge * torch.eye(len(general)).to(general)
        turned = {}
        for name, parameter in select(task.base, self.group).items():
            weight, frame = parameter.double(), None
            if weight.shape[0] > weight.shape[1]:
                # M is 0 outside the span of W's columns, so Q W is found within it; outside, Q may reflect
                frame, weight = torch.linalg.qr(weight)
            concepts, anchors, kept = (keys.double() @ weight.T for keys in (edit.keys, edit.guides, edit.preserved))
            hold = weight @ inputs @ weight.T + self.config.preserve_scale * kept.T @ kept
            matrix = hold - self.config.erase_scale * self.erase(row_basis(concepts), row_basis(anchors))
            new = nearest_rotation(matrix, reflections=frame is not None) @ weight
            turned[name] = (new if frame is None else frame @ new).float()
        return turned

    def erase(self, concepts: Tensor, anchors: Tensor) -> Tensor:
        """(I - G G^T) E E^T from the bases as rows, or its transpose."""
        onto_concepts = concepts.T @ concepts
        term = onto_concepts - anchors.T @ (anchors @ onto_concepts)
        return term.T if self.config.erase_term == "code" else term

    def general_captions(self, task: UnlearningTask) -> list[str]:
        chosen = self.config.general_captions
        if chosen == "everyday":
            return task.may_see(everyday_captions())
        return preserved(self.config, task) if chosen == "preserved" else list(chosen)
