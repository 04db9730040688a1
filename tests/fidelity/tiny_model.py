"""The model on which the authors' code was run: a Stable Diffusion 1.x of tiny shapes whose weights are written out.

Every weight is a function of its name, so that it does not depend on how a release of diffusers or transformers
initialises. 64 px images, latents 4 x 8 x 8 (the VAE halves three times, as Stable Diffusion's does), 77 tokens of
width 16, two cross-attentions beside the middle one.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH = 16
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def write_model(folder: Path, write_tokenizer: Callable[[Path], int]) -> Path:
    """The model as a diffusers folder; `write_tokenizer` writes its tokenizer and gives the vocabulary's size."""
    vocabulary = write_tokenizer(folder / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=64,
        scaling_factor=0.18215,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=WIDTH,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )
    for component, module in {"unet": unet, "vae": vae, "text_encoder": text_encoder}.items():
        _fill(component, module)
        module.save_pretrained(folder / component)
    PNDMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **parts}))
    return folder


@torch.no_grad()
def _fill(component: str, module: nn.Module) -> None:
    """Matrices of unit gain, biases of 0.05, norms of one."""
    for name, value in module.named_parameters():
        name = f"{component}.{name.removeprefix('text_model.')}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
        if value.ndim > 1:
            scale = 1.0 if "embedding" in name and "time_" not in name else (value[0].numel()) ** -0.5
            value.copy_(scale * drawn)
        else:
            value.copy_(0.05 * drawn + (1.0 if name.endswith("weight") else 0.0))
