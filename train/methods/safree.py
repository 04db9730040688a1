"""SAFREE: training-free and adaptive guard (Yoon et al., ICLR 2025, arXiv 2410.12761).

The formulas are in `models/hooks/safree.py`, which acts while images are made; nothing is trained.
"""

from efface.models.hooks.safree import Safree, SafreeSettings
from efface.train.hook_method import HookMethod, PhrasesConfig
from efface.train.method import register


class SafreeMethodConfig(SafreeSettings, PhrasesConfig):
    """The paper gives a list of phrases for nudity, and the bare name for an artist."""


@register("safree")
class SafreeMethod(HookMethod):
    """Projects the tokens of a prompt that say the concept out of the span of its phrases."""

    Config = SafreeMethodConfig
    Hook = Safree
