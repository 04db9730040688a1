"""Everything in `model/` and `judge/` made again from nothing: the stages in order, each resumable.

    render -> vae -> judge -> tokenizer -> unet and text encoder -> save as fp16 -> measure -> card

A finished stage leaves its result in the work folder and is skipped by the next build; an interrupted one goes on
from its last checkpoint. Delete the work folder to start from nothing.
"""

import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, ResNetForImageClassification

from efface.files import write_atomic, write_json
from efface.miniature.card import card
from efface.miniature.measure import measure
from efface.miniature.pool import empty_scenes, label_table, load_pool, pool_scenes
from efface.miniature.tokenizer import build_tokenizer
from efface.miniature.train_judge import new_processor, train_judge, training_set
from efface.miniature.train_unet import new_scheduler, train_unet
from efface.miniature.train_vae import encode, train_vae


@dataclass(frozen=True)
class Sizes:
    """How much of everything: pictures, steps of each stage, and what is measured."""

    pool: int = 24_000
    vae_steps: int = 3_600
    judge_steps: int = 3_000
    unet_steps: int = 3_200
    renders: int = 2_000
    images: int = 4


SMOKE = Sizes(pool=64, vae_steps=2, judge_steps=2, unet_steps=2, renders=8, images=1)


def build(out: Path, work: Path, device: torch.device, sizes: Sizes = Sizes()) -> dict:
    """Make `model/`, `judge/`, `quality.json` and `CARD.md` in `out`; returns the quality."""
    started = time.monotonic()
    scenes = pool_scenes(sizes.pool)
    pictures = load_pool(work, "pool", scenes)
    vae = vae_stage(pictures, work, sizes, device)
    judge = judge_stage(pictures, label_table(scenes), vae, work, sizes, device)
    unet, text_encoder = unet_stage(pictures, vae, work, sizes, device)
    save(out, vae, unet, text_encoder, judge)
    quality = measure(out, device, sizes.renders, sizes.images)
    seconds = round(time.monotonic() - started)
    quality["build"] = {"sizes": asdict(sizes), "seconds": seconds, "machine": machine(device)}
    write_json(out / "quality.json", quality)
    write_atomic(out / "CARD.md", card(quality).encode())
    return quality


def vae_stage(pictures: np.ndarray, work: Path, sizes: Sizes, device: torch.device) -> AutoencoderKL:
    if not (work / "vae" / "config.json").exists():
        train_vae(pictures, work, sizes.vae_steps, device).save_pretrained(work / "vae")
    return AutoencoderKL.from_pretrained(work / "vae", local_files_only=True).to(device).eval()


def judge_stage(
    pictures: np.ndarray, labels: np.ndarray, vae: AutoencoderKL, work: Path, sizes: Sizes, device: torch.device
) -> ResNetForImageClassification:
    if not (work / "judge" / "config.json").exists():
        nothing = empty_scenes(sizes.pool // 16)
        shown = training_set(pictures, labels, load_pool(work, "empty", nothing), label_table(nothing), vae)
        train_judge(*shown, work, sizes.judge_steps, device).save_pretrained(work / "judge")
    return ResNetForImageClassification.from_pretrained(work / "judge", local_files_only=True).eval()


def unet_stage(
    pictures: np.ndarray, vae: AutoencoderKL, work: Path, sizes: Sizes, device: torch.device
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    if not (work / "text_encoder" / "config.json").exists():
        scale = vae.config.scaling_factor
        means, deviations = encode(vae, pictures)
        tokenizer = build_tokenizer(work / "tokenizer")
        scenes = pool_scenes(sizes.pool)
        unet, text_encoder = train_unet(
            scenes, (means * scale, deviations * scale), tokenizer, work, sizes.unet_steps, device
        )
        unet.save_pretrained(work / "unet")
        text_encoder.save_pretrained(work / "text_encoder")
    unet = UNet2DConditionModel.from_pretrained(work / "unet", local_files_only=True)
    return unet, CLIPTextModel.from_pretrained(work / "text_encoder", local_files_only=True)


def save(
    out: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    judge: ResNetForImageClassification,
) -> None:
    """Write the diffusers folder and the judge's folder, weights in fp16."""
    tokenizer = build_tokenizer(out / "model" / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to("cpu", torch.float16).save_pretrained(out / "model")
    build_tokenizer(out / "model" / "tokenizer")
    judge.half().save_pretrained(out / "judge")
    new_processor().save_pretrained(out / "judge")


def machine(device: torch.device) -> str:
    """The kind of machine, for the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
