"""SPM's facilitated transport (Lyu et al., CVPR 2024, arXiv 2312.16145): adapters as strong as a prompt asks for.

    gamma(prompt) = max over the erased phrases of max( cos(e_prompt, e_phrase), |T_prompt and T_phrase| / |T_phrase| )

e are whole encoded prompts, flattened, T the sets of their tokens. Both passes of guidance of an image are made with
gamma times its adapters. The authors' code scales both halves of an adapter, so gamma acts as its square (`power`).

The delta holds the adapters' tensors, as a static one of kind `adapter` would.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from efface.config_files import StrictModel
from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor, classifier_free_guidance
from efface.models.sampling.sampler_hooks import HOOKS, Guidance, HookConfig, SamplerHook
from efface.models.text.text_encoding import encode_prompts, token_ids


class SPMHookSettings(StrictModel):
    power: int = Field(2, ge=1, description="power of gamma that an adapter is scaled by; paper 1, authors' code 2")


class SPMHookConfig(SPMHookSettings, HookConfig):
    """Of one delta; the prompts are the bare names of what was erased."""


@HOOKS.register("spm")
class SPMHook(SamplerHook):
    """Lets the adapters act on a prompt as far as it is about what was erased."""

    Config = SPMHookConfig
    stock_pipeline = "with --static its adapters are merged as strong for every prompt, which is another edit"
    adapters = True

    def __init__(self, base: Base, config: SPMHookConfig) -> None:
        assert base.applied is not None
        self.base, self.config, self.tensors = base, config, base.applied.tensors
        self.layers = sorted({name.rpartition(".")[0] for name in self.tensors})
        for layer in self.layers:
            self._check(base, layer)
        self.phrases = [(_flat(base, phrase), _tokens(base, phrase)) for phrase in config.prompts]
        self.strengths: Tensor | None = None  # of the rows of the pass under way; None: full strength

    def gamma(self, prompt: str) -> float:
        """How much a prompt is about what was erased, at most 1."""
        own, tokens = _flat(self.base, prompt), _tokens(self.base, prompt)
        return max(
            max(float(F.cosine_similarity(own, other, dim=0)), len(tokens & words) / max(1, len(words)))
            for other, words in self.phrases
        )

    def guidance(self, prompts: Sequence[str], start: int = 0) -> Guidance:
        strengths = torch.tensor([self.gamma(prompt) ** self.config.power for prompt in prompts])

        def guided(
            predict: NoisePredictor,
            latents: Tensor,
            timestep: Any,
            cond: Conditioning,
            uncond: Conditioning,
            guidance_scale: float,
        ) -> Tensor:
            self.strengths = strengths
            try:
                return classifier_free_guidance(predict, latents, timestep, cond, uncond, guidance_scale)
            finally:
                self.strengths = None

        return guided

    @contextmanager
    def attached(self, denoiser: Denoiser) -> Iterator[None]:
        modules, handles = dict(denoiser.module.named_modules()), []
        try:
            for name in self.layers:
                layer = modules[name.removeprefix(f"{denoiser.component}.")]
                handles.append(layer.register_forward_hook(self._hook(name, layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check(self, base: Base, layer: str) -> None:
        weight = base.originals().get(f"{layer}.weight")
        parts = [self.tensors.get(f"{layer}.{part}") for part in ("down", "up", "alpha")]
        down, up, alpha = (part.shape if part is not None else None for part in parts)
        if (
            weight is None
            or not (down and up and alpha == ())
            or (up[0], *down[1:]) != tuple(weight.shape)
            or up[1:] != (down[0], *[1] * (weight.ndim - 2))
        ):
            assert base.applied is not None
            raise UserError(f"delta {base.applied.id}: '{layer}' has no adapter that fits the base '{base.spec.name}'")

    def _hook(self, name: str, layer: Any) -> Any:
        down, up = (self.tensors[f"{name}.{part}"].to(layer.weight) for part in ("down", "up"))
        scale = float(self.tensors[f"{name}.alpha"]) / len(down)
        linear = F.conv2d if down.ndim == 4 else F.linear

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            added = scale * linear(linear(inputs[0], down), up)
            if self.strengths is not None:
                # the rows are those of the empty prompt, then of the prompts
                strengths = self.strengths.to(added).repeat(len(added) // len(self.strengths))
                added = added * strengths.view(-1, *[1] * (added.ndim - 1))
            return output + added

        return add


def _flat(base: Base, prompt: str) -> Tensor:
    return encode_prompts(base, [prompt]).encoder_hidden_states.flatten()


def _tokens(base: Base, prompt: str) -> set[int]:
    return set(token_ids(base, [prompt])[0].tolist()) - set(base.tokenizer.all_special_ids)
