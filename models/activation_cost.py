"""What one pass through a UNet or VAE costs, counted without computing it: bytes of activations and operations.

The module may lie on the meta device, where tensors have shapes and no numbers: Stable Diffusion v1.4 is
counted in a second, without memory. On a real device the same count is of real tensors.
"""

import copy
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

Precision = Literal["fp32", "bf16"]

# What torch's autocast for CUDA computes in bf16, and what in fp32, of that which these models use.
AUTOCAST_BF16 = {F.linear, F.conv2d, torch.matmul, torch.bmm, torch.baddbmm, F.scaled_dot_product_attention}
AUTOCAST_FP32 = {F.group_norm, F.layer_norm, F.softmax, torch.softmax}
TOKENS = 77


@dataclass(frozen=True)
class PassCost:
    """Bytes and floating-point operations (a multiply-add is two) of one pass, without the weights."""

    saved: int
    """What autograd keeps from the forward to the backward pass."""
    peak: int
    """What lives at once at most, forward or backward; gradients of the weights are left out."""
    forward_flops: int
    backward_flops: int


def unet_pass_cost(
    unet: UNet2DConditionModel,
    trained: Iterable[str],
    rows: int,
    height: int,
    width: int,
    precision: Precision = "fp32",
    checkpointing: bool = False,
) -> PassCost:
    """A noise prediction for latents (rows, C, height, width), and its backward pass to the weights `trained`.

    `trained` are names in the UNet; none: a pass without gradient. In bf16 the trained weights are fp32, the
    others bf16, and the pass runs under autocast. `checkpointing` is the UNet's own, block by block.
    """
    unet, trained = copy.deepcopy(unet), set(trained)
    for name, parameter in unet.named_parameters():
        if name not in trained and precision == "bf16":
            parameter.data = parameter.data.to(torch.bfloat16)
        parameter.requires_grad_(name in trained)
    if checkpointing:
        # The second forward is within `backward`, where the mode of the first is off.
        again = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), _SimulatedCuda(precision)))
        unet.enable_gradient_checkpointing(again)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with unet.device:
        latents = torch.zeros(rows, unet.config.in_channels, height, width, dtype=dtype)
        embedding = torch.zeros(rows, TOKENS, unet.config.cross_attention_dim, dtype=dtype)
        timestep = torch.zeros(rows, dtype=torch.int64)
    return pass_cost(unet, lambda: unet(latents, timestep, embedding).sample, bool(trained), precision)


def pass_cost(
    module: nn.Module, forward: Callable[[], Tensor], backward: bool, precision: Precision = "fp32"
) -> PassCost:
    """What `forward` costs, and with `backward` the pass back from the mean square of its output.

    Attention is counted as a GPU's fused kernels do it, which never hold the matrix of scores.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    live = _Counter(weights)
    saved: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda weight: live.discard(weight.grad))
    with ExitStack() as modes:
        modes.enter_context(live)
        modes.enter_context(_SimulatedCuda(precision))
        modes.enter_context(torch.set_grad_enabled(backward))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = forward()
        kept = sum(storage.nbytes() for storage in saved.values())
        saved.clear()
        forward_flops = live.flops
        if backward:
            loss = output.float().square().mean()
            del output
            loss.backward()
    return PassCost(kept, live.peak, forward_flops, live.flops - forward_flops)


class _SimulatedCuda(TorchFunctionMode):
    """On the meta device: attention by the kernels of a GPU; in bf16: what autocast for CUDA would cast."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self.autocast = precision == "bf16"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = torch.bfloat16 if func in AUTOCAST_BF16 else torch.float32 if func in AUTOCAST_FP32 else None
        if self.autocast and dtype is not None:
            args, kwargs = tree_map(lambda value: _cast(value, dtype), (args, kwargs))
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _fused_attention(*args[:3])
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention, or for fp32, which it does not know, torch's memory-efficient kernel."""
    if q.dtype == torch.float32:
        attended: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]
    else:
        attended = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return attended


class _Counter(TorchDispatchMode):
    """The bytes of all storages made under it that are alive, now and at most; and the operations done.

    torch's own FlopCounterMode keeps tensors alive beyond their time, so its formulas are used without it.
    """

    def __init__(self, known: Iterable[int]) -> None:
        super().__init__()
        self.sizes = dict.fromkeys(known, 0)
        self.now = self.peak = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula:
            self.flops += formula(*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._record(tensor.untyped_storage())
        return made

    def _record(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)

    def discard(self, tensor: Tensor | None) -> None:
        """Count `tensor` no longer, though it lives on."""
        if tensor is not None:
            key = tensor.untyped_storage()._cdata
            self.now -= self.sizes.get(key, 0)
            self.sizes[key] = 0
