"""AdaVD: adaptive value decomposer (Wang et al., CVPR 2025, arXiv 2412.06143).

The formulas are in `models/hooks/adavd.py`, which acts while images are made; nothing is trained.
"""

from efface.models.hooks.adavd import AdaVD, AdaVDSettings
from efface.train.hook_method import HookMethod, PhrasesConfig
from efface.train.method import register


class AdaVDMethodConfig(AdaVDSettings, PhrasesConfig):
    """The paper gives the bare name of the concept."""


@register("adavd")
class AdaVDMethod(HookMethod):
    """Takes what the values of a prompt's tokens share with the concept's out of the cross-attention."""

    Config = AdaVDMethodConfig
    Hook = AdaVD
