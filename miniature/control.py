"""A miniature that never knew a concept: the control of attacks that learn, which may learn what was never there.

UNet and text encoder are trained from nothing, as those that ship were (`train_unet.py`), on a world in which neither
picture nor caption has the concept. VAE, tokenizer and sizes are the miniature's own, so that the result is a model
like any other that was edited, and what an attack brings back from it was taught by the attack.

The world is a smaller one, things in the plain style alone.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from efface.miniature import MODEL
from efface.miniature.pool import POOL_SEED, load_pool
from efface.miniature.train_unet import new_scheduler, train_unet
from efface.miniature.train_vae import encode
from efface.miniature.vocabulary import OBJECTS
from efface.miniature.world import Scene, draw_scene
from efface.models.export import write_pipeline

STEPS, BATCH, POOL = 3_200, 16, 12_000
"""As many steps as the miniature's own, of a quarter of its batch: about 20 minutes on one core, after which 59 of 64
images show what the prompt names, and none a cat. 400 steps of 32 leave a model that draws nothing."""


def scenes_without(concept: str, count: int) -> list[Scene]:
    """So many scenes of the plain world, the things in turn, none of which is `concept`."""
    things = [words.name for words in OBJECTS if words.name != concept]
    return [draw_scene(POOL_SEED, i, thing=things[i % len(things)], style="plain") for i in range(count)]


def build_control(
    concept: str, out: Path, work: Path, device: torch.device, steps: int = STEPS, pool: int = POOL
) -> None:
    """Write a diffusers folder to `out`; a training that was interrupted goes on from its checkpoint in `work`."""
    scenes = scenes_without(concept, pool)
    vae = (
        AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=torch.float32, local_files_only=True).to(device).eval()
    )
    latents = _latents(load_pool(work, "pool", scenes), vae, work)
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer", local_files_only=True)
    unet, text_encoder = train_unet(scenes, latents, tokenizer, work, steps, device, BATCH)
    unet.register_to_config(_name_or_path="miniature")
    shutil.rmtree(out, ignore_errors=True)
    write_pipeline(
        out,
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=new_scheduler(),
    )


def _latents(pictures: np.ndarray, vae: AutoencoderKL, work: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled, as means and deviations; kept in `work`."""
    path = work / "latents.pt"
    if not path.exists():
        torch.save([part * vae.config.scaling_factor for part in encode(vae, pictures)], path)
    means, deviations = torch.load(path, weights_only=True)
    return means, deviations
