"""Stable Diffusion 1.x: one CLIP text encoder, read after its last norm, and a UNet with cross-attention."""

from collections.abc import Sequence

import torch

from efface.models.base import Base, BaseSpec
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.family import Family, register
from efface.models.loading import load
from efface.models.text.text_encoding import encode_ids, token_ids


@register("sd1")
class StableDiffusion1(Family):
    def load(self, spec: BaseSpec, device: str | torch.device) -> Base:
        return load(spec, device)

    @torch.no_grad()
    def encode_prompts(self, base: Base, prompts: Sequence[str]) -> Conditioning:
        """`last_hidden_state` after the final layer norm, (B, 77, D)."""
        return Conditioning(torch.cat([encode_ids(base.text_encoder, ids[None]) for ids in token_ids(base, prompts)]))

    def denoiser(self, base: Base) -> Denoiser:
        return Denoiser(base.unet)
