"""Which kernel computes the UNet's attention, chosen by its processors, and reported as it really is.

`unet.set_attention_backend` does nothing on Stable Diffusion 1.x: its processors do not ask. So processors
are replaced, the stock ones only: a processor that a method hung on the UNet stays.
"""

import functools
import time
import warnings
from collections import Counter
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor
from torch import Tensor
from torch.nn import functional as F

Backend = Literal["auto", "sdpa", "xformers"]
STOCK = (AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor)
# Tokens and width of a head in the two attentions of SD 1.x at 512 px that cost most.
SHAPES = ((4096, 40), (1024, 80))


def set_attention(unet: UNet2DConditionModel, backend: Backend) -> dict[str, Any]:
    """Use `backend` from now on; `auto` is SDPA, or on a GPU the faster one as timed there, once per dtype.

    Returns {"asked", "used", "processors": {class name: count}, "milliseconds": {backend: …} or None}. Where
    xformers cannot be had, SDPA is used, with one warning if it was asked for by name.
    """
    device, dtype = unet.device, unet.dtype
    reason = _why_no_xformers(device.type, dtype)
    times = None
    used = "sdpa"
    if backend == "xformers" and reason:
        warnings.warn(f"attention by xformers is not to be had ({reason}); using sdpa", stacklevel=2)
    elif backend == "xformers":
        used = "xformers"
    elif backend == "auto" and not reason:
        times = _milliseconds(str(device), dtype)
        used = min(times, key=lambda name: times[name])
    stock = XFormersAttnProcessor if used == "xformers" else AttnProcessor2_0
    processors = {
        name: stock() if type(processor) in STOCK else processor for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(dict(processors))
    counts = dict(Counter(type(processor).__name__ for processor in unet.attn_processors.values()))
    return {"asked": backend, "used": used, "processors": counts, "milliseconds": times}


def _why_no_xformers(device_type: str, dtype: torch.dtype) -> str | None:
    """Why xformers cannot be used on this device, or None where it can: it was tried."""
    if device_type != "cuda":
        return f"it has no kernel for '{device_type}'"
    try:
        from xformers.ops import memory_efficient_attention

        probe = torch.zeros(1, 2, 40, device=device_type, dtype=dtype)
        memory_efficient_attention(probe, probe, probe)
    except ImportError:
        return "it is not installed"
    except Exception as error:
        return f"it fails here: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return None


@functools.cache
def _milliseconds(device: str, dtype: torch.dtype) -> dict[str, float]:
    """One self-attention at each of SHAPES, added up, for 8 images with 8 heads: {backend: milliseconds}."""
    from xformers.ops import memory_efficient_attention

    def sdpa(q: Tensor) -> Tensor:
        q = q.view(8, 8, *q.shape[1:])
        return F.scaled_dot_product_attention(q, q, q)

    def xformers(q: Tensor) -> Tensor:
        return memory_efficient_attention(q, q, q)

    times = {}
    for name, attend in (("sdpa", sdpa), ("xformers", xformers)):
        total = 0.0
        for tokens, width in SHAPES:
            q = torch.randn(64, tokens, width, device=device, dtype=dtype)
            attend(q)
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            for _ in range(10):
                attend(q)
            torch.cuda.synchronize(device)
            total += (time.perf_counter() - start) * 100
        times[name] = round(total, 3)
    return times
