"""Sampler hooks: erasers that change no weight but the guidance, while an image is made.

A delta of kind `hook` names one in its provenance, `{"hook": {"name": …, "config": {…}}}`. A hook is made anew for
every batch, so it may keep state from step to step, and is called at every step in place of plain guidance.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from efface.config_files import StrictModel, parse
from efface.errors import UserError, did_you_mean
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor, classifier_free_guidance, noise_scale
from efface.models.text_encoding import encode_prompts

NoiseScale = Callable[[Any], float]
"""`predictor.noise_scale`, of the base."""


class Guidance(Protocol):
    """The prediction that a step goes by; `classifier_free_guidance` is the plain one."""

    def __call__(
        self,
        predict: NoisePredictor,
        latents: Tensor,
        timestep: Any,
        cond: Conditioning,
        uncond: Conditioning,
        guidance_scale: float,
    ) -> Tensor: ...


class NegativePromptConfig(StrictModel):
    prompts: tuple[str, ...] = Field(min_length=1, description="phrases to keep away from, joined by commas")


class NegativePrompt:
    """The prompts in place of the recipe's negative prompt: the free baseline."""

    def __init__(self, config: NegativePromptConfig, unsafe: Conditioning, noise_scale: NoiseScale) -> None:
        self.unsafe = unsafe

    def __call__(
        self,
        predict: NoisePredictor,
        latents: Tensor,
        timestep: Any,
        cond: Conditioning,
        uncond: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        return classifier_free_guidance(predict, latents, timestep, cond, self.unsafe, guidance_scale)


class SLDConfig(StrictModel):
    """The defaults are the authors' "medium"."""

    prompts: tuple[str, ...] = Field(min_length=1, description="phrases to keep away from, joined by commas")
    warm_up: int = Field(default=10, ge=0, description="steps before the hook acts (delta of the paper)")
    scale: float = Field(default=1000, ge=0, description="safety guidance scale s_S")
    threshold: float = Field(default=0.01, description="lambda: where eps(c) - eps(S) is below it, the hook acts")
    momentum: float = Field(default=0.3, ge=0, description="momentum scale s_m")
    beta: float = Field(default=0.4, ge=0, le=1, description="decay of the momentum")


class SLD:
    """Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105), eqs. 3 to 8.

    eps = eps(0) + s_g (eps(c) - eps(0) - gamma), gamma = mu (eps(S) - eps(0)) + s_m nu, for the unsafe prompt S;
    mu = min(1, |s_S (eps(c) - eps(S))|) where eps(c) - eps(S) < lambda, else 0; nu = beta nu + (1 - beta) gamma.

    All of these are differences of noise; those of a model that predicts velocities are scaled to it.
    """

    def __init__(self, config: SLDConfig, unsafe: Conditioning, noise_scale: NoiseScale) -> None:
        self.config, self.unsafe, self.noise_scale = config, unsafe, noise_scale
        self.step = 0
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


HOOKS: dict[str, tuple[type[StrictModel], Callable[[Any, Conditioning, NoiseScale], Guidance]]] = {
    "negative-prompt": (NegativePromptConfig, NegativePrompt),
    "sld": (SLDConfig, SLD),
}


def guidance_for(base: Base) -> Callable[[], Guidance]:
    """What makes the guidance of a batch: that of the hook delta in `base`, or plain guidance.

    Raises UserError where the delta names no hook this efface knows, or its config is not one.
    """
    if base.applied is None or base.applied.kind != "hook":
        return lambda: classifier_free_guidance
    hook = base.applied.provenance.get("hook", {})
    name = str(hook.get("name", ""))
    if name not in HOOKS:
        raise UserError(f"delta {base.applied.id}: unknown sampler hook '{name}', {did_you_mean(name, HOOKS)}")
    config_class, make = HOOKS[name]
    config = parse(config_class, hook.get("config", {}), f"delta {base.applied.id}, hook {name}")
    unsafe = _unsafe(base, config.prompts)  # type: ignore[attr-defined]
    scale = noise_scale(base.scheduler_config)
    return lambda: make(config, unsafe, scale)


def _unsafe(base: Base, prompts: Sequence[str]) -> Conditioning:
    return encode_prompts(base, [", ".join(prompts)])
