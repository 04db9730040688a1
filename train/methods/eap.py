"""EAP: Erasing Undesirable Concepts with Adversarial Preservation (Bui et al., NeurIPS 2024, arXiv 2410.15618).

    min_theta max_pi  || x0_theta(x_t, c) - [ x0*(x_t, 0) - eta (x0*(x_t, c) - x0*(x_t, 0)) ] ||^2
                      + lambda || x0_theta(x'_t, a(pi)) - x0*(x'_t, a(pi)) ||^2

a(pi) is the concept of a vocabulary that the edit harms most: that one is held. The terms, the search and the roll-outs
are those of `train/searching_method.py`.
"""

from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.train.data.rollouts import State, predictions
from efface.train.method import register
from efface.train.negative_guidance import esd_target
from efface.train.searching_method import SearchingConfig, SearchingMethod


class EAPConfig(SearchingConfig):
    """EAP as its authors run it on objects: 100 words of the 1000 nearest, one at a time."""


@register("eap")
class EAP(SearchingMethod):
    """Adversarial Preservation: erases as ESD does, and holds the concept that this harms most."""

    Config = EAPConfig
    config: EAPConfig

    def target(self, erased: State, concept: Conditioning, found: Conditioning) -> Tensor:
        own, uncond = predictions(self.teacher, erased, [concept, self.rollouts.uncond])
        return esd_target(uncond, own, uncond, self.config.eta)
