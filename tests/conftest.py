"""What the tests of every package share: one thread, and a tiny Stable Diffusion as a diffusers folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from hypothesis import settings
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel

from efface.models.base import Base, load_base

torch.set_num_threads(1)
settings.register_profile("efface", deadline=None)  # on a busy machine an example may take any time
settings.load_profile("efface")

WIDTH = 16  # of the text encoder, and so of the cross-attention
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


@pytest.fixture(autouse=True, scope="session")
def _isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's cache, and never ask the network for a model."""
    patch = pytest.MonkeyPatch()
    patch.setenv("EFFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def write_byte_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer of single bytes; gives the vocabulary's size."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    special = {
        "bos_token": symbols[-2],
        "eos_token": symbols[-1],
        "unk_token": symbols[-1],
        "pad_token": symbols[-1],
    }
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(symbols)


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[[Path], int]:
    """A function that writes a CLIP tokenizer of single bytes to a folder; it gives the vocabulary's size."""
    return write_byte_tokenizer


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory, write_tokenizer: Callable[[Path], int]) -> Path:
    """A Stable Diffusion of 0.2 million seeded random weights: 16 px images, latents 4 x 8 x 8."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    vocabulary = write_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(
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
    ).save_pretrained(folder / "text_encoder")
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


@pytest.fixture
def tiny_base(tiny_base_folder: Path) -> Base:
    """The tiny model, freshly loaded: a test may do with it what it likes."""
    return load_base(tiny_base_folder)
