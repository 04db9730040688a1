"""What a job needs of each GPU, by arithmetic: no weights are read, nothing is measured on a GPU.

Counted are tensors: weights, gradients, optimiser states, what communication lays aside, activations of the largest
pass. Not counted are the CUDA context, workspaces of cuDNN and cuBLAS, and what the allocator cannot use; `fits`
leaves 2 GB for them. DeepSpeed's part is as in the source of 0.19.8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from efface.config_files import find_config, read_yaml
from efface.models.activations import Precision, pass_cost
from efface.models.parameter_groups import select
from efface.train.cost.passes import ForwardPasses, ModelShapes, cached_unet_pass_cost, forward_passes, trained_tensors
from efface.train.method import Method
from efface.train.trainer.options import TrainingOptions

Offload = Literal["none", "optimizer", "all"]
"""What lies in the host's memory: nothing, gradients and optimiser states, or (stage 3) the edited UNet too."""

FP32, BF16 = 4, 2
OPTIMIZER_STATES = {"adam": 2, "adamw": 2, "sgd": 0}
BUCKET = 50_000_000
"""Numbers in DeepSpeed's buffer for gradients on their way: `reduce_bucket_size` in configs/deepspeed/."""
DEEPSPEED_DEFAULT_BUCKET = 500_000_000
"""And where a config leaves it out."""
IMAGE_ENCODER = 304_000_000
"""Weights of CLIP ViT-L/14's image half, with which FADE finds neighbours."""
RESERVED_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU. What is there at once: see `peak`."""

    base: int
    """The unedited UNet, VAE and text encoder, fp32; as long as the worker lives."""
    teacher: int = 0
    """A copy of the unedited UNet in bf16, for jobs in bf16."""
    student: int = 0
    """The UNet being edited; with ZeRO-3 this process's part of it."""
    gathered_params: int = 0
    """With ZeRO-3 all of it beside the part: until it is shared out, and in every pass."""
    gradients: int = 0
    """While passes run."""
    optimizer: int = 0
    """The optimiser's states, and with ZeRO the fp32 values it works on."""
    communication: int = 0
    """Buffers in which gradients are brought together, while passes run."""
    preparation: int = 0
    """While the method's data are made, before there are gradients and states: images drawn by the base."""
    setup: int = 0
    """While ZeRO takes over the weights: the trained ones a second time, before there are gradients and states."""
    rollout: int = 0
    """Activations of the largest pass without gradient."""
    training: int = 0
    """Activations of the pass with gradient, forward and backward."""
    update: int = 0
    """In the optimiser's step: the gradients, and what it lays beside them for a moment."""
    host: int = 0
    """In the host's memory, for each GPU, at most."""

    @property
    def peak(self) -> int:
        forward_passes = self.optimizer + self.gradients + self.communication + max(self.rollout, self.training)
        whole = self.gathered_params + max(self.preparation, self.setup, forward_passes)
        return self.base + self.teacher + self.student + max(whole, self.optimizer + self.update)


def fits(memory: Memory, gigabytes: float) -> bool:
    """Whether a job fits a card sold as having so many gigabytes, taken as 10^9 bytes each, less 2 GB."""
    return memory.peak <= gigabytes * 10**9 - RESERVED_BYTES


def memory(
    method: Method,
    size: ModelShapes,
    *,
    processes: int = 1,
    zero: Literal[0, 1, 2, 3] = 0,
    offload: Offload = "none",
    bucket: int = BUCKET,
    checkpointing: bool = False,
) -> Memory:
    """The memory of a job with this method and config, whose batch is `config.batch_size` in each process.

    `zero` 0 is plain DDP. `offload` needs ZeRO, and "all" stage 3. `bucket` is ZeRO's, in numbers. Raises UserError
    where the method's passes are not known.
    """
    assert offload == "none" or zero, "offload is ZeRO's"
    assert offload != "all" or zero == 3, "weights can be offloaded in stage 3 alone"
    base = FP32 * sum(_numel(module) for module in (size.unet, size.vae, size.text_encoder))
    passes = forward_passes(method, size)
    if passes is None:
        return _closed_form(method, size, base)
    unet, chosen = trained_tensors(method, size)
    sizes = [parameter.numel() for parameter in chosen.values()]
    precision: Precision = method.config.precision
    other = FP32 if precision == "fp32" else BF16
    student = FP32 * sum(sizes) + other * (_numel(unet) - sum(sizes))
    side = max(passes.latent_sizes)
    return Memory(
        base=base,
        teacher=BF16 * _numel(size.unet) if precision == "bf16" else 0,
        **_per_process(method.config, student, sizes, processes, zero, offload, bucket),
        preparation=_preparation(passes, size, method),
        rollout=cached_unet_pass_cost(unet, (), passes.frozen, side, side, precision).peak if passes.frozen else 0,
        training=cached_unet_pass_cost(unet, tuple(chosen), passes.trained, side, side, precision, checkpointing).peak,
    )


def memory_options(setup: TrainingOptions) -> dict[str, Any]:
    """The arguments of `memory` that `setup` stands for. Raises UserError for an unknown DeepSpeed config."""
    options: dict[str, Any] = {"checkpointing": setup.gradient_checkpointing}
    if setup.deepspeed is None:
        return options
    zero = read_yaml(find_config("deepspeed", setup.deepspeed)).get("zero_optimization", {})
    stage = zero.get("stage", 0)
    weights, states = (_is_offloaded(zero.get(what)) for what in ("offload_param", "offload_optimizer"))
    buffers = 2 if zero.get("overlap_comm") and stage < 3 else 1
    return options | {
        "zero": stage,
        "offload": "all" if weights and stage == 3 else "optimizer" if states and stage else "none",
        "bucket": buffers * int(zero.get("reduce_bucket_size", DEEPSPEED_DEFAULT_BUCKET)),
    }


def _is_offloaded(offload: Any) -> bool:
    """Whether a part `offload_...` of a DeepSpeed config moves something away from the GPU."""
    return isinstance(offload, dict) and offload.get("device", "none") != "none"


def _per_process(
    config: Any, student: int, sizes: Sequence[int], processes: int, zero: int, offload: Offload, bucket: int
) -> dict[str, int]:
    """What depends on how `processes` share the work: fields of Memory, for trained tensors of so many numbers."""
    values = FP32 * sum(sizes)
    share = values // processes
    states = OPTIMIZER_STATES[config.optimizer] * share
    # One more where the buffer is copied for the call that sums it; one process has nobody to sum with.
    bucket_copy = FP32 * bucket if processes > 1 else 0
    if zero == 0:
        buckets = values if processes > 1 else 0  # DDP's, beside the gradients
        return {
            "student": student,
            "gradients": values,
            "optimizer": processes * states,
            "communication": buckets,
            "update": values + buckets + _step_temporaries(config, values, "gpu"),
        }
    kept = {
        "student": student,
        "optimizer": share + states,  # ZeRO's optimiser has values of its own, also where the weights are fp32
        "communication": FP32 * bucket + bucket_copy,
    }
    # Values, gradients and one buffer more: of stage 3 for gradients, else to bring the values back.
    host = 3 * share + states + _step_temporaries(config, share, "cpu")
    accumulates = config.gradient_accumulation_steps // processes > 1
    # Once gradients lie in one flat tensor, they are let go.
    step = share + max(share, _step_temporaries(config, share, "gpu"))
    if zero == 1:
        # All gradients stay until the backward pass is over, and meet there with the part that is this process's.
        kept |= {"gradients": values, "update": max(values + share + bucket_copy, step)}
    if zero == 2:
        kept |= {"gradients": share * (2 if accumulates else 1), "update": step}
    if zero < 3:
        # The weights are copied into one flat tensor; then this process's values are, and zeros are laid beside them.
        kept["setup"] = max(values, 2 * share) if offload == "none" else values
    if zero == 3:
        # Gradients have a buffer that stays, as the bucket does.
        step = FP32 * bucket + 2 * share + _step_temporaries(config, share, "gpu")
        alone = processes == 1 and offload != "all"  # the part is the whole
        kept |= {"gradients": share, "update": step, "student": student // processes}
        kept["gathered_params"] = 0 if alone else student
    if offload == "none":
        return kept
    kept |= {"optimizer": 0, "gradients": values if zero == 1 else 0}
    kept["update"] = {1: values + bucket_copy, 2: 0, 3: FP32 * bucket}[zero]
    if zero < 3:
        kept["communication"] += FP32 * max(sizes)  # a gradient on its way to the host, and there the same
        host += FP32 * max(sizes) + (share if accumulates else 0)
    if offload == "all":
        host += kept["student"]
        kept["student"] = 0
    return kept | {"host": host}


def _step_temporaries(config: Any, values: int, device: Literal["gpu", "cpu"]) -> int:
    """Bytes that a step of torch's optimisers lays aside for `values` bytes of values, those of all tensors at once.

    Adam's is the root of its second moments: on a GPU, where the default is the `foreach` kind, corrected in place, on
    a CPU in a second tensor. A decay that is not decoupled is added to a copy of the gradients, which `foreach` lets go
    before it takes the root.
    """
    decay = 1 if config.weight_decay > 0 and config.optimizer != "adamw" else 0
    if config.optimizer == "sgd":
        return decay * values
    return values if device == "gpu" else (2 + decay) * values


def _preparation(passes: ForwardPasses, size: ModelShapes, method: Method) -> int:
    """The most of what sampling, decoding and encoding a batch of images takes."""
    if not passes.images:
        return 0
    side = size.latent_size
    with torch.device("meta"):
        latents = torch.zeros(passes.images, size.vae.config.latent_channels, side, side)
        pixels = torch.zeros(passes.images, 3, size.image_size, size.image_size)
    found = [
        cached_unet_pass_cost(size.unet, (), 2 * passes.images, side, side),
        pass_cost(size.vae, lambda: size.vae.decode(latents).sample, False),
    ]
    if method.name == "ca":
        found.append(pass_cost(size.vae, lambda: size.vae.encode(pixels).latent_dist.mean, False))
    encoder = FP32 * IMAGE_ENCODER if method.name == "fade" else 0
    return encoder + max(one.peak for one in found)


def _closed_form(method: Method, size: ModelShapes, base: int) -> Memory:
    """New values of the group in fp32, the largest matrix and its product in fp64 among them."""
    numbers = [parameter.numel() for parameter in select({"unet": size.unet}, method.group).values()]
    return Memory(base, update=FP32 * sum(numbers) + 2 * 8 * max(numbers))


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
