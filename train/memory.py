"""What a job needs of each GPU, by arithmetic: no weights are read, nothing is measured on a GPU.

Counted are tensors: weights, gradients, optimiser states, what communication lays aside, activations of the largest
pass. Not counted are the CUDA context, workspaces of cuDNN and cuBLAS, and what the allocator cannot use; `fits`
leaves 2 GB for them. DeepSpeed's part is as in the source of 0.19.8.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from efface.models.activations import Precision, count
from efface.models.groups import select
from efface.strict import find_config, read_yaml
from efface.train.method import Method
from efface.train.passes import Passes, Size, counted, passes, trained_tensors
from efface.train.setup import Setup

Offload = Literal["none", "optimizer", "all"]
"""What lies in the host's memory: nothing, gradients and optimiser states, or (stage 3) the edited UNet too."""

FP32, BF16 = 4, 2
STATES = {"adam": 2, "adamw": 2, "sgd": 0}
BUCKET = 50_000_000
"""Numbers in DeepSpeed's buffer for gradients on their way: `reduce_bucket_size` in configs/deepspeed/."""
IMAGE_ENCODER = 304_000_000
"""Weights of CLIP ViT-L/14's image half, with which FADE finds neighbours."""
LEFT_ALONE = 2 * 10**9


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU. What is there at once: see `peak`."""

    base: int
    """The unedited UNet, VAE and text encoder, fp32; as long as the worker lives."""
    teacher: int
    """A copy of the unedited UNet in bf16, for jobs in bf16."""
    student: int
    """The UNet being edited."""
    gradients: int
    optimizer: int
    """The optimiser's states, and with ZeRO the fp32 values it works on."""
    communication: int
    """Buffers in which gradients are brought together."""
    preparation: int
    """While the method's data are made, before there are gradients and states: images drawn by the base."""
    rollout: int
    """Activations of the largest pass without gradient."""
    training: int
    """Activations of the pass with gradient, forward and backward."""
    update: int
    """What the optimiser's step needs for a moment."""
    host: int
    """In the host's memory, for each GPU."""

    @property
    def peak(self) -> int:
        weights = self.base + self.teacher + self.student
        while_training = self.gradients + self.optimizer + self.communication
        return weights + max(self.preparation, while_training + max(self.rollout, self.training, self.update))


def fits(memory: Memory, gigabytes: float) -> bool:
    """Whether a job fits a card sold as having so many gigabytes, taken as 10^9 bytes each, less 2 GB."""
    return memory.peak <= gigabytes * 10**9 - LEFT_ALONE


def memory(
    method: Method,
    size: Size,
    *,
    processes: int = 1,
    zero: Literal[0, 1, 2, 3] = 0,
    offload: Offload = "none",
    checkpointing: bool = False,
) -> Memory:
    """The memory of a job with this method and config, whose batch is `config.batch_size` in each process.

    `zero` 0 is plain DDP. `offload` needs ZeRO, and "all" stage 3. Raises UserError where the method's passes are
    not known.
    """
    assert offload == "none" or zero, "offload is ZeRO's"
    assert offload != "all" or zero == 3, "weights can be offloaded in stage 3 alone"
    base = FP32 * sum(_numel(module) for module in (size.unet, size.vae, size.text_encoder))
    taken = passes(method, size)
    if taken is None:
        return _closed_form(method, size, base)
    unet, chosen = trained_tensors(method, size)
    trained = sum(parameter.numel() for parameter in chosen.values())
    precision: Precision = method.config.precision
    other = FP32 if precision == "fp32" else BF16
    student = FP32 * trained + other * (_numel(unet) - trained)
    states = FP32 * STATES[method.config.optimizer] * trained
    parts = _shared(student, trained, states, processes, zero, offload)
    # Adam takes the root of its second moments, and not decoupled from it adds the decay to the gradients.
    temporary = {"adam": 1 + (method.config.weight_decay > 0), "adamw": 1, "sgd": 0}[method.config.optimizer]
    flat = 1 if zero else 0  # ZeRO lays the gradients of its share side by side
    side = max(taken.sides)
    return Memory(
        base=base,
        teacher=BF16 * _numel(size.unet) if precision == "bf16" else 0,
        student=parts["student"],
        gradients=parts["gradients"],
        optimizer=parts["optimizer"],
        communication=parts["communication"],
        preparation=_preparation(taken, size, method),
        rollout=counted(unet, (), taken.frozen, side, side, precision).peak if taken.frozen else 0,
        training=counted(unet, tuple(chosen), taken.trained, side, side, precision, checkpointing).peak,
        update=0 if offload != "none" else FP32 * (temporary + flat) * trained // (processes if zero else 1),
        host=parts["host"],
    )


def under(setup: Setup) -> dict[str, Any]:
    """The arguments of `memory` that `setup` stands for. Raises UserError for an unknown DeepSpeed config."""
    options: dict[str, Any] = {"checkpointing": setup.gradient_checkpointing}
    if setup.deepspeed is not None:
        zero = read_yaml(find_config("deepspeed", setup.deepspeed)).get("zero_optimization", {})
        offload = "all" if "offload_param" in zero else "optimizer" if "offload_optimizer" in zero else "none"
        options |= {"zero": zero.get("stage", 0), "offload": offload}
    return options


def _shared(student: int, trained: int, states: int, processes: int, zero: int, offload: Offload) -> dict[str, int]:
    """Bytes on each GPU and host when `processes` share them, for `trained` numbers and their `states` in bytes."""
    values = FP32 * trained
    if zero == 0:
        buckets = values if processes > 1 else 0  # DDP's, beside the gradients
        return {"student": student, "gradients": values, "optimizer": states, "communication": buckets, "host": 0}
    # ZeRO's optimiser has values of its own, also where the weights are fp32.
    share = {"gradients": values // processes, "optimizer": (values + states) // processes, "student": student}
    host = 0
    if zero == 1:
        share["gradients"] = values
    if zero == 3:
        share["student"] = student // processes + student  # its part, and in a roll-out all of it
    if offload != "none":
        host += (3 * values + states) // processes  # values, gradients, and a buffer to bring the values back
        share["gradients"] = share["optimizer"] = 0
    if offload == "all":
        host += student // processes
        share["student"] = student
    return {**share, "communication": FP32 * BUCKET, "host": host}


def _preparation(taken: Passes, size: Size, method: Method) -> int:
    """The most of what sampling, decoding and encoding a batch of images takes."""
    if not taken.images:
        return 0
    side = size.latent_side
    with torch.device("meta"):
        latents = torch.zeros(taken.images, size.vae.config.latent_channels, side, side)
        pixels = torch.zeros(taken.images, 3, size.image_size, size.image_size)
    found = [
        counted(size.unet, (), 2 * taken.images, side, side),
        count(size.vae, lambda: size.vae.decode(latents).sample, False),
    ]
    if method.name == "ca":
        found.append(count(size.vae, lambda: size.vae.encode(pixels).latent_dist.mean, False))
    encoder = FP32 * IMAGE_ENCODER if method.name == "fade" else 0
    return encoder + max(one.peak for one in found)


def _closed_form(method: Method, size: Size, base: int) -> Memory:
    """New values of the group in fp32, the largest matrix and its product in fp64 among them."""
    numbers = [parameter.numel() for parameter in select({"unet": size.unet}, method.group).values()]
    solve = FP32 * sum(numbers) + 2 * 8 * max(numbers)
    return Memory(base, 0, 0, 0, 0, 0, 0, 0, solve, 0, 0)


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
