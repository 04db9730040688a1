"""SLD: Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105).

    eps   = eps(0) + s_g (eps(c) - eps(0) - gamma)                                    (eq. 3)
    gamma = mu (eps(S) - eps(0)) + s_m nu                                             (eqs. 4, 7)
    mu    = min(1, |s_S (eps(c) - eps(S))|) where eps(c) - eps(S) < lambda, else 0    (eqs. 5, 6)
    nu    = beta nu + (1 - beta) gamma, from 0                                        (eq. 8)

for the prompt c and the phrases S to keep away from; gamma counts from step delta on, nu grows from the first.

All of these are differences of noise; those of a model that predicts velocities are scaled to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from efface.config_files import StrictModel
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor, noise_scale
from efface.models.sampling.sampler_hooks import HOOKS, Guidance, HookConfig, SamplerHook, joined


class SLDSettings(StrictModel):
    """The defaults are the authors' "medium"."""

    warm_up: int = Field(10, ge=0, description="delta: steps before it acts; weak, medium, strong, max: 15, 10, 7, 0")
    scale: float = Field(1000, ge=0, description="s_S, how soon mu is 1; weak to max: 200, 1000, 2000, 5000")
    threshold: float = Field(
        0.01, description="lambda: it acts where eps(c) - eps(S) is less; weak to max: 0, 0.01, 0.025, 1"
    )
    momentum: float = Field(0.3, ge=0, description="s_m, weight of the momentum; weak to max: 0, 0.3, 0.5, 0.5")
    beta: float = Field(0.4, ge=0, le=1, description="decay of the momentum; weak to max: 0, 0.4, 0.7, 0.7")


class SLDConfig(SLDSettings, HookConfig):
    """Of one delta."""


@HOOKS.register("sld")
class SLD(SamplerHook):
    """Guides away from the phrases where prompt and phrases agree."""

    Config = SLDConfig
    stock_pipeline = (
        "diffusers' StableDiffusionPipelineSafe with safety_concept={prompts!r} and the delta's settings does the same"
    )

    def __init__(self, base: Base, config: SLDConfig) -> None:
        self.config, self.unsafe = config, joined(base, config.prompts)
        self.noise_scale = noise_scale(base.scheduler_config)

    @classmethod
    def passes(cls, settings: SLDSettings) -> int:
        return 3

    def guidance(self, prompts: Sequence[str], start: int = 0) -> Guidance:
        return SafetyGuidance(self.config, self.unsafe, self.noise_scale, start)


class SafetyGuidance:
    """The guidance of one batch, which keeps the momentum from step to step."""

    def __init__(
        self, config: SLDSettings, unsafe: Conditioning, noise_scale: Callable[[Any], float], start: int = 0
    ) -> None:
        self.config, self.unsafe, self.noise_scale = config, unsafe, noise_scale
        self.step = start
        self.nu: Tensor | float = 0.0

    def __call__(
        self,
        predict: NoisePredictor,
        latents: Tensor,
        timestep: Any,
        cond: Conditioning,
        uncond: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        conditions = Conditioning.cat([one.expand(len(latents)) for one in (uncond, cond, self.unsafe)])
        pred_0, pred_c, pred_s = predict(latents.repeat(3, 1, 1, 1), timestep, conditions).chunk(3)
        config, scale = self.config, self.noise_scale(timestep)
        unsafe = scale * (pred_c - pred_s)
        mu = (config.scale * unsafe).abs().clamp(max=1)
        mu = torch.where(unsafe < config.threshold, mu, 0.0)
        gamma = mu * (scale * (pred_s - pred_0)) + config.momentum * self.nu
        self.nu = config.beta * self.nu + (1 - config.beta) * gamma
        acting = self.step >= config.warm_up and scale > 0  # at 0 there is noise alone, whatever the prompt
        self.step += 1
        return pred_0 + guidance_scale * (pred_c - pred_0 - (gamma / scale if acting else 0.0))
