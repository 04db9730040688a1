"""The miniature's UNet and text encoder, trained together to predict noise, as Stable Diffusion was.

Both have Stable Diffusion's block types, and so its parameter names: `attn2.to_k`, `to_v` and all the others.
The schedule is SD v1.4's. Captions are drawn anew at every step; about one in ten is empty.
"""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from efface.miniature.captions import caption
from efface.miniature.training import step_rng, train
from efface.miniature.world import Scene

SEED = 13
BATCH = 64
WIDTH = 96


def new_scheduler() -> PNDMScheduler:
    """SD v1.4's scheduler. `clip_sample` is for the schedulers made from its config: latents have no bounds."""
    scheduler = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(SEED)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_unet() -> UNet2DConditionModel:
    torch.manual_seed(SEED + 1)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids of shape (texts, 77)."""
    return tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def train_unet(
    scenes: list[Scene],
    latents: tuple[Tensor, Tensor],
    tokenizer: CLIPTokenizer,
    work: Path,
    steps: int,
    device: torch.device,
    batch: int = BATCH,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train on scaled latents, given as means and deviations of shape (scenes, 4, 8, 8); returns the averages."""
    both = nn.ModuleDict({"unet": new_unet(), "text_encoder": new_text_encoder(tokenizer)}).to(device)
    noising = DDPMScheduler.from_config(new_scheduler().config)
    means, deviations = latents

    def loss_at(step: int) -> Tensor:
        rng, generator = step_rng(SEED, step)
        chosen = rng.integers(len(scenes), size=batch)
        ids = tokens(tokenizer, [caption(scenes[i], rng) for i in chosen]).to(device)
        clean = means[chosen] + deviations[chosen] * torch.randn(batch, *means.shape[1:], generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, noising.config.num_train_timesteps, (batch,), generator=generator)
        noisy = noising.add_noise(clean, noise, timesteps).to(device)
        hidden = both["text_encoder"](ids).last_hidden_state
        noise_pred = both["unet"](noisy, timesteps.to(device), hidden).sample
        return nn.functional.mse_loss(noise_pred.float(), noise.to(device))

    trained = train("unet", both, loss_at, steps=steps, peak=1e-3, work=work, average=0.998, weight_decay=1e-3)
    return trained["unet"], trained["text_encoder"]  # type: ignore[index]
