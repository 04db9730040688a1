"""The accelerator and the engine of a training, as its config and its options ask for."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from torch import Tensor, nn

from efface.errors import UserError
from efface.models.network import Network
from efface.train.method import TrainingConfig
from efface.train.trainer.deepspeed_engine import ZeroEngine, deepspeed_config
from efface.train.trainer.engine import Engine
from efface.train.trainer.options import TrainingOptions
from efface.train.trainer.pack import Member


def make_accelerator(device: torch.device, config: TrainingConfig, options: TrainingOptions) -> Accelerator:
    """The processes of a group share the batches of one optimiser step. Raises UserError where they cannot.

    `device` is where the model is, and stays.
    """
    on_cpu = device.type == "cpu"
    processes, batches = PartialState(cpu=on_cpu).num_processes, config.gradient_accumulation_steps
    if batches % processes:
        what = f"gradient_accumulation_steps is {batches}"
        raise UserError(f"{what}, which {processes} processes cannot share: give a multiple of {processes}")
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="no",
        gradient_accumulation_steps=batches // processes,
        step_scheduler_with_optimizer=False,
        log_with=options.tracker,
        project_dir=options.tracker_folder,
    )
    if options.tracker:
        if not accelerator.log_with:
            raise UserError(
                f"training.tracker: {options.tracker} is not installed, should be: pip install {options.tracker}"
            )
        accelerator.init_trackers("training")
    return accelerator


def make_engine(
    accelerator: Accelerator,
    student: Network,
    trained: Mapping[str, nn.Parameter],
    config: TrainingConfig,
    options: TrainingOptions,
    member: Member | None = None,
) -> Engine:
    """Accelerate's, or DeepSpeed's where the options name a config of it; of a packed job the pack's."""
    if member is not None:
        return PackedEngine(accelerator, student, trained, config, member)
    if options.deepspeed is None:
        return Engine(accelerator, student, trained, config)
    settings = deepspeed_config(options.deepspeed, config, accelerator.num_processes)
    if options.compiled and settings["zero_optimization"]["stage"] == 3:
        raise UserError(
            f"training.compiled: should be false with deepspeed {options.deepspeed}, as ZeRO-3 collects weights in "
            "hooks around layers inside of what is compiled; or give zero1 or zero2"
        )
    return ZeroEngine(accelerator, student, trained, config, settings)


class PackedEngine(Engine):
    """A job in a pack, which goes back through the networks of all its jobs at once."""

    def __init__(
        self,
        accelerator: Accelerator,
        student: Network,
        trained: Mapping[str, nn.Parameter],
        config: TrainingConfig,
        member: Member,
    ) -> None:
        super().__init__(accelerator, student, trained, config)
        self.member = member

    def backward(self, loss: Tensor) -> None:
        self.member.backward(loss / self.accelerator.gradient_accumulation_steps)
