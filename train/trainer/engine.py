"""Between the loop and the devices: the processes of a group, the backward pass, the optimiser's state.

`Engine` is one process, or a group under DistributedDataParallel, by Accelerate. `ZeroEngine`
(`train/trainer/deepspeed_engine.py`) hands the model and the optimiser to DeepSpeed instead; processes, reductions and
trackers stay Accelerate's.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, nn

from efface.models.network import Network
from efface.train.method import TrainingConfig
from efface.train.trainer.checkpoint import Checkpoint

# The tensors that an optimiser keeps for every trained one, each of the trained one's shape.
OPTIMIZER_STATE_KEYS = {"adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}

SINGLETONS: tuple[Any, ...] = (AcceleratorState, GradientState, PartialState)


class Engine:
    """One process, or the processes of a group that share the batches of an optimiser step."""

    predict: Any
    """The student, called with gradient, for the loss and nothing else."""

    def __init__(
        self, accelerator: Accelerator, student: Network, trained: Mapping[str, nn.Parameter], config: TrainingConfig
    ) -> None:
        self.accelerator, self.trained, self.config = accelerator, dict(trained), config
        self.optimizer = make_optimizer(config, list(trained.values()))
        self.prepare(student)

    def prepare(self, student: Network) -> None:
        self.model, self.accelerated_optimizer = self.accelerator.prepare(
            student.module, self.optimizer, device_placement=[False, False]
        )
        self.predict = student.wrapped(self.model)

    def gather_params(self) -> AbstractContextManager[None]:
        """Within it the student has all its weights in this process, to be used without gradient."""
        return nullcontext()

    def accumulate(self) -> AbstractContextManager[None]:
        """Around the forward and backward pass of one batch."""
        return self.accelerator.accumulate(self.model)

    def backward(self, loss: Tensor) -> None:
        """Add a batch's share of a step's gradient to what the trained tensors have."""
        self.accelerator.backward(loss)

    def backward_and_step(self, loss: Tensor, learning_rate: float, measure: bool) -> float | None:
        """The backward pass of one batch; after the last one of a step, the step.

        Then also the norm of the gradient before clipping: NaN where it is not finite, None where it is neither to be
        measured nor clipped.
        """
        accelerator, norm = self.accelerator, None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.backward(loss)
        if accelerator.sync_gradients:
            values = list(self.trained.values())
            if self.config.max_grad_norm > 0:
                norm = accelerator.clip_grad_norm_(values, self.config.max_grad_norm)
            elif measure:
                norm = torch.nn.utils.get_total_norm([value.grad for value in values if value.grad is not None])
        self.accelerated_optimizer.step()
        self.accelerated_optimizer.zero_grad()
        return None if norm is None else float(norm)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The trained tensors and what the optimiser keeps of each, as in a Checkpoint; on the CPU.

        All processes call it together; only the first one's is whole.
        """
        trained = {name: value.detach().cpu() for name, value in self.trained.items()}
        moments = {
            f"{name}/{key}": self.optimizer.state[value][key].cpu()
            for name, value in self.trained.items()
            for key in OPTIMIZER_STATE_KEYS[self.config.optimizer]
        }
        return trained, moments

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        """The optimiser as it was after `step` steps; the trained values are in their place already."""
        for name, value in self.trained.items():
            kept = {
                key: moments[f"{name}/{key}"].to(value.device) for key in OPTIMIZER_STATE_KEYS[self.config.optimizer]
            }
            if kept:
                self.optimizer.state[value] = {"step": torch.tensor(float(step)), **kept}

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over the processes."""
        return float(self.accelerator.reduce(value, "mean"))

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process of the group."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum") > 0)

    def close(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()


def make_optimizer(config: TrainingConfig, values: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser a config asks for; its learning rate is set at every step."""
    return OPTIMIZERS[config.optimizer](values, lr=0.0, weight_decay=config.weight_decay)  # type: ignore[call-arg]


def broadcast_checkpoint(accelerator: Accelerator, found: Checkpoint | None) -> Checkpoint | None:
    """The first process's checkpoint, for all: the others need not see its file."""
    if accelerator.num_processes == 1:
        return found
    device, parts = accelerator.device, ("trained", "moments", "method")
    object_list: list[Any] = [None]
    if found is not None:
        shapes = {part: {name: value.shape for name, value in getattr(found, part).items()} for part in parts}
        object_list = [(found.losses, shapes)]
    broadcast_object_list(object_list)
    if object_list[0] is None:
        return None
    losses, shapes = object_list[0]

    def shared(part: str) -> dict[str, Tensor]:
        own = getattr(found, part) if found else {}
        return {
            name: broadcast(own[name].to(device) if own else torch.empty(shape, device=device)).cpu()
            for name, shape in shapes[part].items()
        }

    return Checkpoint(losses, *(shared(part) for part in parts))


@contextmanager
def isolated_accelerate_state() -> Iterator[None]:
    """Accelerate's process-wide singletons, empty for the block and put back after it.

    Without it a second job in one process would inherit the first one's settings, or be refused.
    """
    before = accelerate_state()
    set_accelerate_state([{} for _ in before])
    try:
        yield
    finally:
        set_accelerate_state(before)


def accelerate_state() -> list[dict[str, Any]]:
    """What Accelerate's process-wide singletons hold."""
    return [dict(state._shared_state) for state in SINGLETONS]


def set_accelerate_state(held: list[dict[str, Any]]) -> None:
    for state, content in zip(SINGLETONS, held, strict=True):
        state._shared_state.clear()
        state._shared_state.update(content)
