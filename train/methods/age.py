"""AGE: Adaptive Guided Erasure (Bui et al., ICLR 2025, arXiv 2501.18950), "Fantastic Targets for Concept Erasure".

    min_theta max_pi  || x0_theta(x_t, c) - [ x0*(x_t, a) - eta (x0*(x_t, c) - x0*(x_t, a)) ] ||^2
                      + lambda || x0_theta(x'_t, a) - x0*(x'_t, a) ||^2,      a = a(pi)

A concept is mapped to what is found in a vocabulary in place of the empty prompt: to something near it that is not the
same, and that stays. The terms, the search and the roll-outs are those of `train/searching_method.py`.

pi climbs the second term alone, as the authors' code does: there the first one's gradient is cut off before pi.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.train.data.rollouts import State, predictions
from efface.train.method import register
from efface.train.negative_guidance import esd_target
from efface.train.searching_method import SearchingConfig, SearchingMethod


class AGEConfig(SearchingConfig):
    """AGE as its authors run it on objects: one at a time of the 100 nearest words, nearly without noise."""

    nearest: int = Field(100, ge=1, description="candidates nearest to the concept that are kept; authors: 100")
    temperature: float = Field(0.1, gt=0, description="of the Gumbel-softmax; authors: objects 0.1, styles 2")
    mixture: Literal["hard", "soft"] = Field(
        "hard", description="one candidate at a time (authors, objects), or a mixture of the first few (styles)"
    )


@register("age")
class AGE(SearchingMethod):
    """Adaptive Guided Erasure: maps a concept to one that is found near it, and holds that one."""

    Config = AGEConfig
    config: AGEConfig

    def target(self, erased: State, concept: Conditioning, found: Conditioning) -> Tensor:
        own, instead = predictions(self.teacher, erased, [concept, found])
        return esd_target(instead, own, instead, self.config.eta)
