"""An estimate of what a job takes of each GPU, before anything is run; `measured_memory.py` measures it on a GPU.

Weights are counted, activations are counted on torch's meta device, and gradients and optimiser states are what
Accelerate and DeepSpeed estimate for as many trained weights. Not in it are the CUDA context, workspaces of cuDNN and
cuBLAS, and what the allocator cannot use: `RESERVED_BYTES` is left for them.
"""

from dataclasses import dataclass
from typing import Any

from accelerate.commands.estimate import estimate_training_usage
from torch import nn

from efface.config_files import find_config, read_yaml
from efface.models.activation_cost import TOKENS, Precision
from efface.models.parameter_groups import select
from efface.models.shapes import ModelShapes, cached_unet_pass_cost
from efface.train.composed_method import ComposedMethod
from efface.train.cost.flops import conditioning_names, trained_names, trained_weights, with_replay
from efface.train.method import GradientMethod, Method
from efface.train.method_cost import BaseImages
from efface.train.trainer.options import TrainingOptions

FP32, BF16 = 4, 2
RESERVED_BYTES = 2 * 10**9
DEFAULT_OPTIONS = TrainingOptions()


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU."""

    base: int
    """The unedited UNet, VAE and text encoder in fp32, as long as the worker lives."""
    models: int = 0
    """What is trained; all else is shared with the base, or in bf16 with a copy of its UNet."""
    preparation: int = 0
    """While the images are made that the method needs before its first step."""
    states: int = 0
    """Gradients and optimiser states, or of a closed form the new values."""
    activations: int = 0
    """Of the largest pass, with or without gradient; or, where that is more, what Adam's step keeps for a moment."""
    host: int = 0
    """In the host's memory, for each GPU, with offload."""

    @property
    def peak(self) -> int:
        """The most at any time: images are made before there are gradients."""
        return self.base + self.models + max(self.preparation, self.states + self.activations)


def estimate_memory(
    method: Method, shapes: ModelShapes, options: TrainingOptions = DEFAULT_OPTIONS, processes: int = 1
) -> Memory:
    """The memory of a job of `processes` GPUs. Raises UserError for an unknown DeepSpeed config."""
    base = FP32 * shapes.parameters
    if isinstance(method, ComposedMethod):  # one edit after another
        each = (estimate_memory(one, shapes, options, processes) for one in method.methods)
        return max(each, key=lambda memory: memory.peak)
    if not isinstance(method, GradientMethod):
        sizes = [parameter.numel() for parameter in select(shapes.modules, method.group).values()]
        in_fp64 = 2 * 2 * FP32 * max(sizes, default=0)  # a matrix and its product
        return Memory(base, states=FP32 * sum(sizes) + in_fp64)
    cost, (student, trained) = with_replay(method, method.cost(shapes)), trained_weights(method, shapes)
    precision: Precision = method.config.precision
    trained_count = sum(parameter.numel() for parameter in trained.values())
    names = trained_names(student, trained)
    side = max(cost.latent_sizes or (shapes.latent_size,))
    unet = student.module
    if method.network == "text_encoder":
        names, unet = conditioning_names(shapes), shapes.unet
    passes = [cached_unet_pass_cost(unet, (), max(1, cost.frozen_rows), side, side, precision)]
    trained_rows = cost.trained_rows or int(cost.mean_search_rows > 0)  # an adversary takes one row after another
    if trained_rows:
        checkpointing = options.gradient_checkpointing
        passes.append(cached_unet_pass_cost(unet, names, trained_rows, side, side, precision, checkpointing))
    activations = max(one.peak for one in passes) + _text_activations(cost.text_rows, shapes)
    states, host = _states(trained_count, _largest_layer(student.module), options, processes)
    return Memory(
        base=base,
        models=FP32 * trained_count
        + (BF16 * _parameters(shapes.unet) if precision == "bf16" else 0)
        + _partitions(_parameters(student.module) - trained_count, precision, options, processes),
        preparation=_preparation(cost.images, shapes) if cost.images else 0,
        states=states,
        activations=max(activations, FP32 * trained_count if options.deepspeed is None else 0),
        host=host,
    )


def _partitions(frozen: int, precision: Precision, options: TrainingOptions, processes: int) -> int:
    """Bytes of a process's share of the frozen weights, where ZeRO-3 takes them out of the base's."""
    if options.deepspeed is None or _zero(options.deepspeed).get("stage") != 3:
        return 0
    return (BF16 if precision == "bf16" else FP32) * frozen // processes


def _zero(name: str) -> dict[str, Any]:
    """The part of a DeepSpeed config about ZeRO."""
    settings: dict[str, Any] = read_yaml(find_config("deepspeed", name)).get("zero_optimization", {})
    return settings


def _text_activations(rows: int, shapes: ModelShapes) -> int:
    """What the text encoder keeps for its backward pass: some twenty numbers a layer, token and width."""
    config = shapes.text_encoder.config
    return FP32 * rows * TOKENS * config.num_hidden_layers * 20 * int(config.hidden_size)


def _states(trained: int, largest_layer: int, options: TrainingOptions, processes: int) -> tuple[int, int]:
    """Bytes of gradients and Adam's states for so many trained weights: on each GPU, and in the host's memory."""
    if options.deepspeed is None:
        usage = estimate_training_usage(FP32 * trained, "float32")
        buckets = usage["gradients"] if processes > 1 else 0  # DistributedDataParallel's, beside the gradients
        return usage["step"] - usage["model"] + buckets, 0
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    zero = _zero(options.deepspeed)
    offload, offload_weights = _offloads(zero, "offload_optimizer"), _offloads(zero, "offload_param")
    if zero.get("stage") == 3:
        host, gpu, _ = estimate_zero3_model_states_mem_needs(
            trained,
            largest_layer,
            num_gpus_per_node=processes,
            cpu_offload=offload or offload_weights,
            cpu_offload_params=offload_weights,
            zero_init=False,
        )
    else:
        host, gpu = estimate_zero2_model_states_mem_needs(trained, num_gpus_per_node=processes, cpu_offload=offload)
        if zero.get("stage") == 1 and processes > 1:
            gpu += FP32 * trained  # the gradients, which are not shared out
    return gpu, host // processes if offload or offload_weights else 0


def _offloads(zero: dict[str, Any], part: str) -> bool:
    """Whether the part `offload_…` of a DeepSpeed config moves something to the host."""
    offload = zero.get(part)
    return isinstance(offload, dict) and offload.get("device", "none") != "none"


def _preparation(images: BaseImages, shapes: ModelShapes) -> int:
    """The most that sampling, decoding and encoding a batch of images takes, the image encoder beside it."""
    recipe = images.recipe
    height, width = (side // shapes.pixels_per_latent for side in (recipe.height, recipe.width))
    rows = recipe.smallest_batch * (2 if recipe.guidance_scale > 1 else 1)
    passes = [shapes.unet_pass(rows, height, width), shapes.decode_pass(recipe.smallest_batch, height, width)]
    if images.encoded:
        passes.append(shapes.encode_pass(recipe.smallest_batch, height, width))
    return FP32 * images.encoder_weights + max(one.peak for one in passes)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _largest_layer(module: nn.Module) -> int:
    return max(sum(parameter.numel() for parameter in layer.parameters(recurse=False)) for layer in module.modules())
