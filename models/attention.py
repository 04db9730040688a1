"""Which kernel computes the UNet's attention, chosen by its processors, and reported as it really is.

`unet.set_attention_backend` does nothing on Stable Diffusion 1.x: its processors do not ask. So processors
are replaced, the stock ones only: a processor that a method hung on the UNet stays.

    sdpa      torch's scaled_dot_product_attention, which picks a kernel itself
    flash     the same, FlashAttention first
    cudnn     the same, cuDNN first
    xformers  xformers' memory_efficient_attention
    auto      the fastest of these as timed on this GPU; on a CPU sdpa
"""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models import attention_processor
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from efface.models.attention_backend import AttentionInUse, Backend
from efface.models.attention_timing import milliseconds

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""softmax(q k^T / sqrt(d)) v; all of them (B, heads, tokens, d)."""


class FlashAttnProcessor(AttnProcessor2_0):
    """SDPA that takes FlashAttention wherever it can be had, and torch's next best elsewhere."""

    first = SDPBackend.FLASH_ATTENTION

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        with sdpa_kernel(_kernel_priority(self.first), set_priority=True):
            return super().__call__(*args, **options)


class CuDNNAttnProcessor(FlashAttnProcessor):
    """SDPA that takes cuDNN wherever it can be had: its heads are at most 128 wide, those of SD 1.x up to 160."""

    first = SDPBackend.CUDNN_ATTENTION


PROCESSORS: dict[str, type] = {
    "sdpa": AttnProcessor2_0,
    "flash": FlashAttnProcessor,
    "cudnn": CuDNNAttnProcessor,
    "xformers": XFormersAttnProcessor,
}
DEFAULT_PROCESSORS = (AttnProcessor, *PROCESSORS.values())


def set_attention(unet: UNet2DConditionModel, backend: Backend, dtype: torch.dtype | None = None) -> AttentionInUse:
    """Use `backend` from now on; `auto` is the fastest one, timed once per GPU, dtype and shape.

    `dtype` is what attention is computed in, under autocast another than the UNet's own, which is the default.
    Where a backend cannot be had, SDPA is used, with one warning in a process.
    """
    device, dtype = unet.device, dtype or unet.dtype
    times = None
    used = "sdpa"
    if backend == "auto" and device.type == "cuda":
        supported = {
            name: attend for name, attend in KERNELS.items() if unsupported_reason(name, device, dtype) is None
        }
        times = milliseconds(supported, device, dtype, shapes(unet))
        used = min(times, key=lambda name: times[name], default="sdpa")
    elif backend not in ("auto", "sdpa"):
        reason = unsupported_reason(backend, device, dtype)
        if reason:
            _warn(backend, reason)
        else:
            used = backend
    processors = {
        name: PROCESSORS[used]() if type(processor) in DEFAULT_PROCESSORS else processor
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(dict(processors))
    counts = dict(Counter(type(processor).__name__ for processor in unet.attn_processors.values()))
    return AttentionInUse(requested=backend, used=used, processors=counts, milliseconds=times)


def shapes(unet: UNet2DConditionModel) -> tuple[tuple[int, int, int], ...]:
    """(heads, tokens, width of a head) of the two self-attentions that cost most, at the UNet's own image size."""
    found = []
    for level, kind in enumerate(unet.config.down_block_types):
        if "CrossAttn" in kind:
            heads = unet.config.num_attention_heads or unet.config.attention_head_dim
            heads = heads if isinstance(heads, int) else heads[level]
            tokens = (unet.config.sample_size // 2**level) ** 2
            found.append((heads, tokens, unet.config.block_out_channels[level] // heads))
    return tuple(found[:2])


def _kernel_priority(first: SDPBackend) -> list[SDPBackend]:
    rest = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    return [first, *(kernel for kernel in rest if kernel != first)]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _only(kernel: SDPBackend) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return _sdpa(q, k, v)

    return attend


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As diffusers' processor asks for it: heads are rows of the batch."""
    flat = (x.flatten(0, 1).contiguous() for x in (q, k, v))
    attended: Tensor = attention_processor.xformers.ops.memory_efficient_attention(*flat)
    return attended.view_as(q)


KERNELS: dict[str, Attention] = {
    "sdpa": _sdpa,
    "flash": _only(SDPBackend.FLASH_ATTENTION),
    "cudnn": _only(SDPBackend.CUDNN_ATTENTION),
    "xformers": _xformers,
}


def unsupported_reason(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot compute here, or None where it can: it was tried, forward and backward."""
    if backend == "xformers" and attention_processor.xformers is None:
        return "it is not installed"
    if backend == "cudnn" and device.type != "cuda":
        return f"it has no kernel for {dtype} on '{device.type}'"  # elsewhere torch takes another one silently
    try:
        probe = torch.zeros(1, 2, 16, 40, device=device, dtype=dtype, requires_grad=True)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch lists why each kernel does not fit
            KERNELS[backend](probe, probe, probe).sum().backward()
    except NotImplementedError:
        return f"it has no kernel for {dtype} on '{device.type}'"
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"it fails for {dtype} on '{device.type}': {first_line}"
    return None


def _warn(backend: str, reason: str) -> None:
    """Once in a process for each backend, however many jobs it does, and in whatever dtypes."""
    if backend not in _warned:
        _warned.add(backend)
        warnings.warn(f"attention by {backend} is not to be had ({reason}); using sdpa", stacklevel=3)


_warned: set[str] = set()
