"""Negative prompt: the phrases in place of the recipe's negative prompt. The free baseline.

    eps = eps(S) + s_g (eps(c) - eps(S))

for the prompt c and the phrases S, where classifier-free guidance (Ho and Salimans, arXiv 2207.12598) has the empty
prompt.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor, classifier_free_guidance
from efface.models.sampling.sampler_hooks import HOOKS, Guidance, HookConfig, SamplerHook, joined


class NegativePromptConfig(HookConfig):
    """Nothing but the phrases, joined by commas."""


@HOOKS.register("negative-prompt")
class NegativePrompt(SamplerHook):
    """Guides away from the phrases instead of the empty prompt."""

    Config = NegativePromptConfig
    stock_pipeline = "give any pipeline of diffusers negative_prompt={prompts!r} instead"

    def __init__(self, base: Base, config: NegativePromptConfig) -> None:
        self.unsafe = joined(base, config.prompts)

    def guidance(self, prompts: Sequence[str], start: int = 0) -> Guidance:
        return self._guidance

    def _guidance(
        self,
        predict: NoisePredictor,
        latents: Tensor,
        timestep: Any,
        cond: Conditioning,
        uncond: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        return classifier_free_guidance(predict, latents, timestep, cond, self.unsafe, guidance_scale)
