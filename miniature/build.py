"""Everything in `model/` and `judge/` made again from nothing: the stages in order, each resumable.

    render -> vae -> judge -> tokenizer -> unet and text encoder -> save as fp16 -> measure -> card

A finished stage leaves its result in the work folder and is skipped by the next build; an interrupted one goes on
from its last checkpoint. Delete the work folder to start from nothing.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedModel, ResNetForImageClassification

from efface.files import open_to_readers, write_atomic, write_json
from efface.miniature.card import card
from efface.miniature.measure import measure
from efface.miniature.pool import empty_scenes, label_table, load_pool, pool_scenes
from efface.miniature.tokenizer import build_tokenizer
from efface.miniature.train_judge import new_processor, train_judge, training_set
from efface.miniature.train_unet import new_scheduler, train_unet
from efface.miniature.train_vae import encode, train_vae
from efface.models.export import write_pipeline


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
    make(out, work, device, sizes)
    quality = measure(out, device, sizes.renders, sizes.images)
    seconds = json.loads((work / "seconds.json").read_text())
    quality["build"] = {"sizes": asdict(sizes), "seconds": seconds, "machine": machine(device)}
    write_json(out / "quality.json", quality)
    write_atomic(out / "CARD.md", card(quality).encode())
    return quality


def make(out: Path, work: Path, device: torch.device, sizes: Sizes) -> None:
    """Draw and train what `work` does not hold yet, and save the model and the judge in `out`."""
    scenes = pool_scenes(sizes.pool)
    with timed("render", work):
        pictures = load_pool(work, "pool", scenes)
    with timed("vae", work):
        vae = vae_stage(pictures, work, sizes, device)
    with timed("judge", work):
        judge = judge_stage(pictures, label_table(scenes), vae, work, sizes, device)
    with timed("unet", work):
        unet, text_encoder = unet_stage(pictures, vae, work, sizes, device)
    save(out, vae, unet, text_encoder, judge)


def vae_stage(pictures: np.ndarray, work: Path, sizes: Sizes, device: torch.device) -> AutoencoderKL:
    if not (work / "vae").exists():
        keep(train_vae(pictures, work, sizes.vae_steps, device), work / "vae")
    return AutoencoderKL.from_pretrained(work / "vae", local_files_only=True).to(device).eval()


def judge_stage(
    pictures: np.ndarray, labels: np.ndarray, vae: AutoencoderKL, work: Path, sizes: Sizes, device: torch.device
) -> ResNetForImageClassification:
    if not (work / "judge").exists():
        nothing = empty_scenes(sizes.pool // 16)
        shown = training_set(pictures, labels, load_pool(work, "empty", nothing), label_table(nothing), vae)
        keep(train_judge(*shown, work, sizes.judge_steps, device), work / "judge")
    return ResNetForImageClassification.from_pretrained(work / "judge", local_files_only=True).eval()


def unet_stage(
    pictures: np.ndarray, vae: AutoencoderKL, work: Path, sizes: Sizes, device: torch.device
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    if not (work / "text_encoder").exists():
        scale = vae.config.scaling_factor
        means, deviations = encode(vae, pictures)
        tokenizer = build_tokenizer(work / "tokenizer")
        scenes = pool_scenes(sizes.pool)
        unet, text_encoder = train_unet(
            scenes, (means * scale, deviations * scale), tokenizer, work, sizes.unet_steps, device
        )
        keep(unet, work / "unet")
        keep(text_encoder, work / "text_encoder")
    unet = UNet2DConditionModel.from_pretrained(work / "unet", local_files_only=True)
    return unet, CLIPTextModel.from_pretrained(work / "text_encoder", local_files_only=True)


def keep(model: ModelMixin | PreTrainedModel, folder: Path) -> None:
    """Save a stage's result whole or not at all: its folder is what says that the stage is done."""
    part = folder.with_name(folder.name + ".part")
    model.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def save(
    out: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    judge: ResNetForImageClassification,
) -> None:
    """Write the diffusers folder and the judge's folder, weights in fp16."""
    tokenizer = build_tokenizer(out / "model" / "tokenizer")
    for module in (vae, unet):
        module.register_to_config(_name_or_path="miniature")  # else the work folder's path
    write_pipeline(
        out / "model",
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=new_scheduler(),
    )
    judge.half().save_pretrained(out / "judge")
    new_processor().save_pretrained(out / "judge")
    open_to_readers(out / "judge")


@contextmanager
def timed(stage: str, work: Path) -> Iterator[None]:
    """Adds what the stage takes to `seconds.json`, so that a resumed build knows all of its time."""
    path = work / "seconds.json"
    started = time.monotonic()
    try:
        yield
    finally:
        spent = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, spent | {stage: round(spent.get(stage, 0) + time.monotonic() - started)})


def machine(device: torch.device) -> str:
    """The kind of machine, for the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
