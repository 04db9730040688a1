"""DeepSpeed's ZeRO under the loop: optimiser state, gradients and weights spread over the processes of a group.

DeepSpeed is initialised directly. Accelerate takes a group of CPU processes for one process, fills in a
clipping of 1.0 that nobody requested, and needs a data loader to know the batch; here the job says both.

Two things need care with ZeRO-3, which keeps a part of every weight and collects a layer's weights in hooks before its
forward pass. Processes have roll-outs of different lengths, and a collective call that only some of them make would
hang: so roll-outs run on collected weights with DeepSpeed's hooks off (`gather_params`). And tensors by name, for a
delta or a checkpoint, are put together from the parts of all processes.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from efface.config_files import find_config, read_yaml
from efface.errors import UserError
from efface.models.network import Network
from efface.train.method import TrainingConfig
from efface.train.trainer.engine import OPTIMIZER_STATE_KEYS, Engine

JOB_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
)
STAGES = (1, 2, 3)


def deepspeed_config(name_or_path: str, config: TrainingConfig, processes: int) -> dict[str, Any]:
    """A file of `configs/deepspeed/`, and what the job says in it: batch, accumulation, and a clipping, 0.0 for none.

    Raises UserError where it is unknown, leaves something to be guessed, or says what is the job's to say.
    """
    path = find_config("deepspeed", name_or_path)
    settings = read_yaml(path)
    conflicting = [key for key in JOB_KEYS if key in settings]
    if conflicting:
        raise UserError(f"{path}: {conflicting[0]}: is set by the job's config, should not be here")
    auto = _find_auto(settings)
    if auto:
        raise UserError(f"{path}: {auto}: is 'auto', should be a value")
    zero = settings.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or stage not in STAGES:
        raise UserError(f"{path}: zero_optimization.stage: should be 1, 2 or 3, not {stage}")
    return settings | {
        # Else ZeRO-3 replaces torch's linear function for the whole process and for good, by one that rounds otherwise.
        "zero_optimization": zero | {"memory_efficient_linear": False},
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps // processes,
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 10**9,
        # torch's own optimisers, SGD among them, also where their state is in the host's memory.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


class ZeroEngine(Engine):
    """One process or a group, whose model and optimiser DeepSpeed holds."""

    def __init__(
        self,
        accelerator: Accelerator,
        student: Network,
        trained: Mapping[str, nn.Parameter],
        config: TrainingConfig,
        settings: dict[str, Any],
    ) -> None:
        self.settings = settings
        self.partitioned = settings["zero_optimization"]["stage"] == 3
        super().__init__(accelerator, student, trained, config)

    def prepare(self, student: Network) -> None:
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.WARNING)
        # A minute of g++ for an operator of inference that no training step calls.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.group = ExitStack()
        if not distributed.is_initialized():
            self.group.enter_context(_single_process_group(self.accelerator.device))
        self.unet = student.module
        self.module_hooks = {
            module: (module._forward_pre_hooks.copy(), module._forward_hooks.copy()) for module in self.unet.modules()
        }
        try:
            self.deepspeed, *_ = deepspeed.initialize(
                model=self.unet, optimizer=self.optimizer, config=self.settings, dist_init_required=False
            )
        except BaseException:
            self.group.close()
            raise
        self.predict = student.wrapped(self.deepspeed)

    def gather_params(self) -> AbstractContextManager[None]:
        return self._gather_params() if self.partitioned else nullcontext()

    @contextmanager
    def _gather_params(self) -> Iterator[None]:
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

        not_available = [value for value in self.unet.parameters() if value.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        deepspeed_hooks = {module: (module._forward_pre_hooks, module._forward_hooks) for module in self.module_hooks}
        with GatheredParameters(not_available):
            _set_hooks(self.module_hooks)
            try:
                yield
            finally:
                _set_hooks(deepspeed_hooks)

    def accumulate(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backward_and_step(self, loss: Tensor, learning_rate: float, measure: bool) -> float | None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.backward(loss)
        last = self.deepspeed.is_gradient_accumulation_boundary()
        self.deepspeed.step()
        if not last:
            return None
        norm = self.deepspeed.get_global_grad_norm()
        # DeepSpeed leaves a step out, and says nothing, where the gradient is not finite.
        return float(norm) if self.deepspeed.was_step_applied() else math.nan

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        trained: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for name, value in self.trained.items():
            self._add_on_main_process(trained, name, safe_get_full_fp32_param(value))
            for key in OPTIMIZER_STATE_KEYS[self.config.optimizer]:
                self._add_on_main_process(moments, f"{name}/{key}", safe_get_full_optimizer_state(value, key))
        return trained, moments

    def _add_on_main_process(self, kept: dict[str, Tensor], name: str, value: Tensor) -> None:
        if self.accelerator.is_main_process:
            kept[name] = value.cpu()

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        kept = OPTIMIZER_STATE_KEYS[self.config.optimizer]
        if not kept:
            return
        zero = self.deepspeed.optimizer
        # The optimiser's own view: all trained tensors end to end, this process's part of it.
        for flat in zero.fp32_partitioned_groups_flat if self.partitioned else zero.single_partition_of_fp32_groups:
            zero.optimizer.state[flat] = {"step": torch.tensor(float(step))} | {
                key: torch.zeros_like(flat) for key in kept
            }
        if not self.partitioned:
            zero._lazy_init_hp_params_optimizer_state()
        for name, value in self.trained.items():
            for key in kept:
                self._restore(value, moments[f"{name}/{key}"], key)

    def _restore(self, value: Any, moment: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not self.partitioned:
            safe_set_full_optimizer_state(value, moment, key)
            return
        size, rank = value.ds_tensor.numel(), distributed.get_rank()
        part = moment.new_zeros(size)  # the last process's part may be longer than what is left for it
        mine = moment.flatten()[rank * size : (rank + 1) * size]
        part[: len(mine)] = mine
        safe_set_local_optimizer_state(value, part, key)

    def close(self) -> None:
        super().close()
        self.deepspeed.destroy()
        self.group.close()


@contextmanager
def _single_process_group(device: torch.device) -> Iterator[None]:
    """What DeepSpeed needs in a process alone: a process group, and the variable LOCAL_RANK."""
    import deepspeed

    given = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        deepspeed.comm.destroy_process_group()
        os.environ.pop("LOCAL_RANK")
        if given is not None:
            os.environ["LOCAL_RANK"] = given


def _set_hooks(hooks: Mapping[nn.Module, tuple[Any, Any]]) -> None:
    for module, (before, after) in hooks.items():
        module._forward_pre_hooks, module._forward_hooks = before, after


def _find_auto(settings: Mapping[str, Any]) -> str | None:
    """The place of the first value 'auto', as `zero_optimization.reduce_bucket_size`."""
    for key, value in settings.items():
        if value == "auto":
            return key
        inner = _find_auto(value) if isinstance(value, Mapping) else None
        if inner:
            return f"{key}.{inner}"
    return None
