"""A second model family in one file, as another package would add it: a tiny random Stable Diffusion XL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from efface.models.base import Base, BaseSpec
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.family import Family, register

WIDTH, POOLED, TIME = 16, 12, 8


class TwoEncoders(nn.Module):
    """The penultimate states of both encoders side by side, and the second one's pooled projection."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.first, self.second = CLIPTextModel(config), CLIPTextModelWithProjection(config)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(ids, output_hidden_states=True).hidden_states[-2]
        second = self.second(ids, output_hidden_states=True)
        return torch.cat([first, second.hidden_states[-2]], dim=-1), second.text_embeds


@register("tiny-sdxl")
class TinySDXL(Family):
    def load(self, spec: BaseSpec, device: str | torch.device) -> Base:
        """`spec.source` is a folder with a tokenizer, a VAE and a scheduler; the rest is random."""
        folder = Path(spec.source)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        torch.manual_seed(0)
        modules: list[Any] = [
            UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(16, 32),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                attention_head_dim=(2, 4),
                cross_attention_dim=2 * WIDTH,
                norm_num_groups=8,
                addition_embed_type="text_time",
                addition_time_embed_dim=TIME,
                projection_class_embeddings_input_dim=POOLED + 6 * TIME,
            ),
            TwoEncoders(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=WIDTH,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    projection_dim=POOLED,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ),
            AutoencoderKL.from_pretrained(folder / "vae"),
        ]
        unet, text_encoder, vae = (module.to(device).eval().requires_grad_(False) for module in modules)
        scheduler_config = dict(DDIMScheduler.load_config(folder / "scheduler"))
        return Base(spec, "0" * 64, unet, text_encoder, tokenizer, vae, scheduler_config, torch.device(device))

    @torch.no_grad()
    def encode_prompts(self, base: Base, prompts: Sequence[str]) -> Conditioning:
        encoder: Any = base.text_encoder
        ids = base.tokenizer(list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        encoded = [encoder(row[None]) for row in ids["input_ids"].to(base.device)]
        states, pooled = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        side = base.spec.image_size  # original size, crop, target size
        time_ids = torch.tensor([[side, side, 0, 0, side, side]], device=base.device).expand(len(states), -1)
        return Conditioning(states, {"text_embeds": pooled, "time_ids": time_ids})

    def denoiser(self, base: Base) -> Denoiser:
        return Denoiser(base.unet)
