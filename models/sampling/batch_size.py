"""How many images a batch has: as the recipe says, or as many as the memory holds."""

import math
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn

from efface.models.activation_cost import Precision, pass_cost
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.decoding import overlapping
from efface.models.text.text_encoding import encode_prompts

USABLE = 0.7
"""Share of the free memory; the rest is for what kernels need beside the activations that are counted."""


def batch_size(base: Base, recipe: Recipe, images: int) -> int:
    """Images in every batch of so many; where the memory decides, batches are about equally large."""
    if recipe.batch_size != "auto":
        return recipe.batch_size
    fitting = int(USABLE * free_memory(base.device) / image_bytes(base, recipe))
    most = max(1, min(fitting, recipe.largest_batch))
    return math.ceil(images / math.ceil(images / most)) if images else 1


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still take; on a GPU with what its allocator holds in reserve."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    used, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - used
    return min(free + reserved - used, allowed)


def image_bytes(base: Base, recipe: Recipe) -> int:
    """Activations of one image, with guidance, of a step or of decoding, whichever is more; counted without memory.

    Of both, where one batch is decoded while the next is denoised.
    """
    known = _counted.setdefault(base, {})
    decisive = (recipe.height, recipe.width, recipe.dtype, recipe.vae_dtype, recipe.guidance_scale > 1)
    if decisive not in known:
        known[decisive] = _count(base, recipe)
    return known[decisive]


_counted: WeakKeyDictionary[Base, dict[tuple[object, ...], int]] = WeakKeyDictionary()


def _count(base: Base, recipe: Recipe) -> int:
    factor = 2 ** (len(base.vae.config.block_out_channels) - 1)
    rows = 2 if recipe.guidance_scale > 1 else 1
    prompts = encode_prompts(base, [""])
    with torch.device("meta"):
        unet, vae = type(base.unet).from_config(base.unet.config), type(base.vae).from_config(base.vae.config)
        latents = torch.zeros(rows, base.unet.config.in_channels, recipe.height // factor, recipe.width // factor)
        prompts, timestep = prompts.to(latents.device).expand(rows), torch.zeros(())
    denoiser = base.denoiser.wrapped(nn.Module.to(unet, getattr(torch, recipe.dtype)))
    step = pass_cost(unet, lambda: denoiser(latents, timestep, prompts), False)
    precision: Precision = "fp32" if recipe.vae_dtype == "float32" else "bf16"
    decoding = pass_cost(vae, lambda: vae.decode(latents[:1]).sample, False, precision)
    return step.peak + decoding.peak if overlapping(base.device) else max(step.peak, decoding.peak)
