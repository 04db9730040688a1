"""Negative prompt: the concept in place of the recipe's negative prompt. The free baseline.

The formulas are in `models/hooks/negative_prompt.py`, which acts while images are made; nothing is trained.
"""

from efface.models.hooks.negative_prompt import NegativePrompt
from efface.train.hook_method import HookMethod, PhrasesConfig
from efface.train.method import register


class NegativePromptMethodConfig(PhrasesConfig):
    """Nothing but the phrases, joined by commas."""


@register("negative-prompt")
class NegativePromptMethod(HookMethod):
    """Guides every image away from the concept's phrase instead of the empty prompt."""

    Config = NegativePromptMethodConfig
    Hook = NegativePrompt
