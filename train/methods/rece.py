"""RECE: Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024, arXiv 2407.12383).

After UCE's edit, `epochs` times: find for each concept the embedding that best makes the edited layers W say what the
original ones W0 said of it, and erase that embedding too.

    c' = ( sum_layers W^T W + attack_ridge I )^-1 ( sum_layers W^T W0 ) c                       (regularised towards 0)

for all tokens c of the concept's prompt, over to_k and to_v of every text cross-attention. Then c'_i is edited to the
guide's token c*_i beside it, and what is preserved to itself, W being the weight before the epoch:

    W <- ( refine_ridge W + s_e sum_i W c*_i c'_i^T + s_p sum_j W c_j c_j^T )
         ( refine_ridge I + s_e sum_i c'_i c'_i^T   + s_p sum_j c_j c_j^T )^-1

All values are W times an embedding, so that W = W0 T throughout, with one T for all layers: the attack needs of the
layers nothing but G = sum_layers W0^T W0, and is c' = ( T^T G T + attack_ridge I )^-1 T^T G c.

The authors keep the epoch with the lowest rate of detections on validation images; here all epochs are run.

Several concepts (`multi`) are attacked and erased together; a chain (`continual`) starts anew from the base.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.models.parameter_groups import select
from efface.train.closed_form import Statistics, key_statistics, ridge_solve
from efface.train.method import UnlearningTask, register
from efface.train.methods.uce import UCE, UCEConfig


class RECEConfig(UCEConfig):
    tokens: Literal["last-subject", "all"] = Field(
        "all", description="token positions of UCE's edit; authors: those of UCE's older code"
    )
    preserve_scale: float | None = Field(
        None, ge=0, description="s_p of UCE's edit; authors: null, UCE's older code's max(0.1, 1/n) of n"
    )
    technique: Literal["replace"] = Field("replace", description="values of UCE's edit: its guide's; authors: the same")
    debias: None = Field(None, description="nothing: what is erased is not debiased")
    epochs: int = Field(
        1, ge=0, description="attacks and erasures after UCE's; authors: objects and styles 1, unsafe 2, nudity 3"
    )
    attack_ridge: float = Field(
        1e-3, gt=0, description="price of a long c'; authors: styles and hard objects 1e-3, nudity and easy ones 0.1"
    )
    refine_ridge: float = Field(0.1, gt=0, description="price of an epoch's change; authors 0.1")
    refine_erase_scale: float = Field(1.0, gt=0, description="s_e of an epoch; authors 1")
    refine_preserve_scale: float = Field(0.1, ge=0, description="s_p of an epoch; authors 0.1")


@register("rece")
class RECE(UCE):
    """UCE, and then the embeddings that would still bring the concept back, found and erased in closed form."""

    Config = RECEConfig
    config: RECEConfig
    version = 1

    def solve(self, task: UnlearningTask) -> dict[str, Tensor]:
        config, weights = self.config, select(task.base, self.group)
        gram = sum((weight.double().T @ weight.double() for weight in weights.values()), start=torch.zeros(()))
        encoded = self.encoded(task, "")  # an epoch holds the empty prompt, whatever UCE's edit does
        identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        transform = self.transform(self.sums(*self.embedded(task, encoded)))
        whole = {prompt: found.embedding.double() for prompt, found in encoded.items()}
        pairs = [(whole[prompt], whole[guide]) for prompt, guide in self.edits(task)]
        kept = [whole[prompt] for prompt in dict.fromkeys(["", *self.preserved(task)])]
        for _ in range(config.epochs):
            attack = attack_map(gram, transform, config.attack_ridge)
            parts = [
                key_statistics(concept @ attack.T, guide, config.refine_erase_scale) for concept, guide in pairs
            ] + [key_statistics(keys, keys, config.refine_preserve_scale) for keys in kept]
            refined: Statistics = sum(parts[1:], start=parts[0])
            transform = transform @ ridge_solve(identity, refined, config.refine_ridge)
        return {name: (weight.double() @ transform).float() for name, weight in weights.items()}


def attack_map(gram: Tensor, transform: Tensor, ridge: float) -> Tensor:
    """A (d, d), with c' = A c, for W = W0 `transform` and `gram` = sum_layers W0^T W0."""
    edited = transform.T @ gram
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(edited @ transform + ridge * identity, edited)
