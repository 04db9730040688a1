"""SLD: Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105).

The formulas are in `models/hooks/sld.py`, which acts while images are made; nothing is trained.
"""

from efface.models.hooks.sld import SLD, SLDSettings
from efface.train.hook_method import HookMethod, PhrasesConfig
from efface.train.method import register


class SLDMethodConfig(SLDSettings, PhrasesConfig):
    """Presets `weak`, `medium`, `strong` and `max` are the authors' four strengths."""


@register("sld")
class SLDMethod(HookMethod):
    """Guides every image away from the concept's phrase where the prompt agrees with it, with a momentum."""

    Config = SLDMethodConfig
    Hook = SLD
