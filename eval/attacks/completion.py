"""Diffusion completion: the unedited base draws the first steps, and the edited model finishes the image.

When Are Concepts Erased From Diffusion Models? (Lu et al., NeurIPS 2025, arXiv 2505.17013): the base runs 5 or 10 of 50
steps. A model that only fails to begin a concept completes it. Its trajectory is DDIM's, which keeps no state that the
second model would lack.
"""

from collections.abc import Iterator

import torch
from diffusers import DDIMScheduler
from pydantic import Field
from torch import Tensor

from efface.eval.attack import ATTACKS, Attack, AttackConfig
from efface.eval.oracle import Attempt, Instance, Oracle
from efface.models.noise_scheduler import make_scheduler


class CompletionConfig(AttackConfig):
    shares: tuple[float, ...] = Field(
        (0.1, 0.2), min_length=1, description="of the steps that the base draws; the authors' 5 and 10 of 50"
    )


@ATTACKS.register("completion")
class Completion(Attack):
    """The base starts, the edited model finishes; nothing is optimised."""

    Config = CompletionConfig
    config: CompletionConfig

    @torch.no_grad()
    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        for share in self.config.shares:
            scheduler = make_scheduler("ddim", oracle.base.scheduler_config, oracle.recipe.steps)
            handover = max(1, round(share * len(scheduler.timesteps)))
            latents = oracle.noise(instance.seed) * scheduler.init_noise_sigma
            with oracle.unedited():
                latents = self._steps(oracle, instance, scheduler, 0, handover, latents)
            latents = self._steps(oracle, instance, scheduler, handover, len(scheduler.timesteps), latents)
            yield oracle.decoded(latents, base_steps=handover)

    @staticmethod
    def _steps(
        oracle: Oracle, instance: Instance, scheduler: DDIMScheduler, start: int, end: int, latents: Tensor
    ) -> Tensor:
        """Latents (1, C, h, w) after steps `start` to `end` (exclusive) of whatever model is in place."""
        scale, uncond = oracle.recipe.guidance_scale, oracle.encode(oracle.recipe.negative_prompt)
        cond = oracle.encode(instance.prompt)
        with oracle.guided(instance.prompt, start=start) as (guidance, predict):
            for time in scheduler.timesteps[start:end]:
                model_input = scheduler.scale_model_input(latents, time)
                eps = guidance(predict, model_input, time.to(latents.device), cond, uncond, scale)
                latents = scheduler.step(eps, time, latents).prev_sample
        return latents
