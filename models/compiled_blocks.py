"""Compiles the blocks that a UNet repeats, for sampling and for training; equal blocks share one compilation.

torch keeps what it has compiled beside the code of a block's class: one list for all blocks of a process, each entry
with the conditions under which it holds (shapes, dtypes, whether there are gradients). So a job's student finds what
the job before compiled for its own, and weights that are changed in place are seen. Three of torch's settings suit one
model with one purpose; whoever compiles first changes them, for the process.
"""

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from efface.errors import UserError

COMPILED_BLOCKS = (BasicTransformerBlock, ResnetBlock2D)

MOST_COMPILATIONS = 1024
"""Entries of a list. The 22 residual blocks of Stable Diffusion have 15 shapes, with and without gradient, for every
number of rows; torch's own limit is 8, beyond which a block runs as it is written."""


def compile_blocks(module: nn.Module, backend: str = "inductor") -> None:
    """Compile each block that repeats, in place; it happens when a block is first called with a shape.

    Hooks within a block are compiled with it; where they come or go later, it is compiled anew.
    """
    _prepare_torch()
    for block in module.modules():
        if isinstance(block, COMPILED_BLOCKS):
            block.compile(backend=backend, dynamic=False)


def restore_blocks(module: nn.Module) -> None:
    """Undo `compile_blocks`: the blocks run as they are written."""
    for block in module.modules():
        block.__dict__.pop("_compiled_call_impl", None)


def check_compiler(device: torch.device) -> None:
    """Raises UserError where torch cannot compile for a CPU, having no compiler of C++."""
    from torch._inductor import cpp_builder, exc

    if device.type != "cpu":
        return
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise UserError(
            "training.compiled: on a CPU torch compiles with a compiler of C++, and finds none: should be false, or "
            "CXX should name one"
        ) from None


def _prepare_torch() -> None:
    from torch._dynamo import config
    from torch._functorch import config as backward_config

    config.recompile_limit = config.accumulated_recompile_limit = MOST_COMPILATIONS
    # else what was compiled for a block without hooks would be run for one with adapters
    config.skip_nnmodule_hook_guards = False
    # else no method could go back through a prediction twice (`retain_graph`)
    backward_config.donated_buffer = False
