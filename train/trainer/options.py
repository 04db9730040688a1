"""How a job is run, as against what it computes: nothing here changes a delta beyond rounding.

So it is no part of a job's id. What does change numbers, such as the precision, stands in `TrainingConfig`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from efface.config_files import LocalPath, StrictModel
from efface.models.attention import set_attention
from efface.models.attention_backend import AttentionInUse, Backend
from efface.models.compiled_blocks import check_compiler, compile_blocks, restore_blocks
from efface.models.denoiser import Denoiser
from efface.models.network import Network

Halves = dict[int, Tensor]
"""Weights in bf16, by the address of what they were made of, which has to be kept as long."""


class TrainingOptions(StrictModel):
    """The means of a job: memory, kernels, the split over processes, and what is logged."""

    gradient_checkpointing: bool = Field(
        False, description="activations made again in the backward pass: a quarter more work, a quarter of the memory"
    )
    attention: Backend | None = Field(
        None, description="kernel of the attention (`models/attention.py`); null: as it is in the base"
    )
    compiled: bool = Field(
        False,
        description="the blocks that UNets repeat are compiled, forward and backward, which takes minutes once; "
        "such jobs are not packed",
    )
    deepspeed: str | None = Field(
        None, description="a name in configs/deepspeed/, or a YAML file like them; null: DistributedDataParallel"
    )
    rollout_gigabytes: float = Field(
        4.0, ge=0, description="trajectories of the frozen model that a run's cache keeps for its jobs; 0: none"
    )
    tracker: Literal["tensorboard"] | None = Field(
        None, description="what records loss, learning rate and gradient norm of every step; null: nothing"
    )
    tracker_folder: LocalPath | None = Field(None, description="the folder the tracker writes to")

    @model_validator(mode="after")
    def _a_tracker_has_a_folder(self) -> "TrainingOptions":
        if (self.tracker is None) != (self.tracker_folder is None):
            raise ValueError("tracker and tracker_folder go together: give both or neither")
        return self


@contextmanager
def apply_training_options(
    training_options: TrainingOptions,
    precision: Literal["fp32", "bf16"],
    teacher: Denoiser,
    student: Network,
    trained: list[nn.Parameter],
) -> Iterator[AttentionInUse | None]:
    """Both networks as `training_options` and `precision` ask for; the teacher is put back afterwards, bit for bit.

    A student that is the text encoder has one kernel of attention, and gives back the teacher's report.

    Gives what `set_attention` says of the student; None where no attention is asked for.
    """
    processors = dict(teacher.module.attn_processors)
    halves: Halves = {}
    originals = {parameter: parameter.data for parameter in teacher.module.parameters()}
    try:
        report = convert(teacher, training_options, precision, halves=halves)
        if training_options.gradient_checkpointing:
            student.checkpoint_gradients()
        report = convert(student, training_options, precision, trained, halves) or report
        if training_options.compiled:
            check_compiler(teacher.module.device)
            for network in (teacher, student):
                if isinstance(network, Denoiser):
                    compile_blocks(network.module)
        yield report
    finally:
        restore_blocks(teacher.module)
        teacher.module.set_attn_processor(processors)
        for parameter, value in originals.items():
            parameter.data = value
        teacher.module.__dict__.pop("forward", None)


def convert(
    network: Network,
    training_options: TrainingOptions,
    precision: Literal["fp32", "bf16"],
    trained: Sequence[nn.Parameter] = (),
    halves: Halves | None = None,
) -> AttentionInUse | None:
    """A network with the kernels and the precision asked for. Gives what `set_attention` says of it, or None.

    bf16: all weights but the trained ones are bf16, and so is the arithmetic in the UNets' forward passes. The trained
    ones stay fp32, and so does everything outside of the UNets. halves: what was converted before, of networks that
    share values, which share them again.
    """
    report = None
    if training_options.attention is not None and isinstance(network, Denoiser):
        dtype = torch.bfloat16 if precision == "bf16" else None  # some kernels know no fp32
        report = set_attention(network.module, training_options.attention, dtype)
    if precision == "bf16":
        # a text encoder mixes norms in fp32 and in bf16 badly, and is small
        kept = trained if isinstance(network, Denoiser) else list(network.module.parameters())
        _to_bf16(network.module, kept, {} if halves is None else halves)
    return report


def _to_bf16(module: Any, trained: Sequence[nn.Parameter], halves: Halves) -> None:
    kept = {id(parameter) for parameter in trained}
    for parameter in module.parameters():
        if id(parameter) not in kept:
            address = parameter.data_ptr()
            if address not in halves:
                halves[address] = parameter.data.to(torch.bfloat16)
            parameter.data = halves[address]
    # An autocast of its own for each pass: its cached casts of trained weights would otherwise outlive a roll-out.
    module.forward = torch.autocast(module.device.type, torch.bfloat16)(module.forward)
