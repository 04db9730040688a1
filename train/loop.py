"""The one training loop: a gradient method, a task, and Accelerate between them and the devices.

An optimiser step takes `gradient_accumulation_steps` batches. Batch number `step *
gradient_accumulation_steps + k` goes to process `k mod processes`, and every batch is a function of (seed,
number): so the same job on more processes sees the same samples, and what is left of a run at a step
boundary is `(trained values, optimiser state, losses)`.

Trained tensors are fp32. The learning rate is a pure function of the step. Clipping is explicit, never a
default.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn

from efface.errors import JobFailure, UserError
from efface.models.predictor import NoisePredictor, predictor
from efface.train.method import GradientMethod, Student, Task, TrainingConfig


def train(
    method: GradientMethod, task: Task, on_step: Callable[[int, int, float], None] | None = None
) -> tuple[dict[str, Tensor], list[float]]:
    """The delta's tensors, and the loss of every optimiser step (mean over its batches).

    `on_step(done, steps, loss)` is called after every optimiser step. Raises JobFailure where a loss, or a
    trained tensor in the end, is not finite.
    """
    student = Student(copy.deepcopy(task.base.unet).float().eval().requires_grad_(False))
    method.prepare(task, student)
    trained = method.trained(student)
    for value in trained.values():
        value.requires_grad_(True)
    with own_accelerate_state():
        training = begin(method, student, trained)
        while training.step < method.steps:
            loss = advance(training)
            if on_step is not None:
                on_step(training.step, method.steps, loss)
    tensors = method.saved(student)
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise JobFailure(f"the trained weights are not finite after step {method.steps}: {_too_fast(method)}")
    return tensors, training.losses


@dataclass
class Training:
    """A run between two optimiser steps."""

    method: GradientMethod
    trained: list[nn.Parameter]
    predict: NoisePredictor
    model: nn.Module
    optimizer: Any
    accelerator: Accelerator
    losses: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return len(self.losses)


def begin(method: GradientMethod, student: Student, trained: dict[str, nn.Parameter]) -> Training:
    """A run before its first step. The model stays on the device it is on."""
    on_cpu = next(iter(trained.values())).device.type == "cpu"
    # A gang's processes share the batches of one optimiser step.
    processes = PartialState(cpu=on_cpu).num_processes
    batches = method.config.gradient_accumulation_steps
    if batches % processes:
        what = f"gradient_accumulation_steps is {batches}"
        raise UserError(f"{what}, which {processes} processes cannot share: give a multiple of {processes}")
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="no",
        gradient_accumulation_steps=batches // processes,
        step_scheduler_with_optimizer=False,
    )
    values = list(trained.values())
    optimizer = make_optimizer(method.config, values, method.learning_rate)
    model, optimizer = accelerator.prepare(student.unet, optimizer, device_placement=[False, False])
    return Training(method, values, predictor(model), model, optimizer, accelerator)


def advance(training: Training) -> float:
    """One optimiser step; its loss."""
    method, accelerator = training.method, training.accelerator
    config: TrainingConfig = method.config
    for group in training.optimizer.param_groups:
        group["lr"] = method.learning_rate * learning_rate_factor(
            training.step, method.steps, config.warmup_steps, config.schedule
        )
    first = training.step * config.gradient_accumulation_steps
    losses = []
    for k in range(accelerator.process_index, config.gradient_accumulation_steps, accelerator.num_processes):
        with torch.no_grad():
            batch = method.batch(first + k)
        with accelerator.accumulate(training.model):
            loss = method.loss(training.predict, batch)
            losses.append(loss.detach())
            accelerator.backward(loss)
            if accelerator.sync_gradients and config.max_grad_norm > 0:
                accelerator.clip_grad_norm_(training.trained, config.max_grad_norm)
            training.optimizer.step()
            training.optimizer.zero_grad()
    mean = float(accelerator.reduce(torch.stack(losses).mean(), "mean"))
    if not math.isfinite(mean):
        raise JobFailure(f"the loss is {mean} at step {training.step + 1} of {method.steps}: {_cause(training)}")
    training.losses.append(mean)
    return mean


def learning_rate_factor(step: int, steps: int, warmup_steps: int, schedule: str) -> float:
    """The share of the learning rate at step 0, 1, …: rises from 1 / warm-up, then goes by the schedule."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0


def make_optimizer(config: TrainingConfig, values: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser a config asks for."""
    makers: dict[str, type[torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
    }
    return makers[config.optimizer](values, lr=learning_rate, weight_decay=config.weight_decay)  # type: ignore[call-arg]


@contextmanager
def own_accelerate_state() -> Iterator[None]:
    """Accelerate's process-wide singletons, empty for the block and put back after it.

    Without it a second job in one process would inherit the first one's settings, or be refused.
    """
    shared = [state._shared_state for state in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, old in zip(shared, before, strict=True):
            state.clear()
            state.update(old)


def _cause(training: Training) -> str:
    if training.step == 0:
        return "nothing was trained yet, so the base itself, or the method's data, is not finite"
    return _too_fast(training.method)


def _too_fast(method: GradientMethod) -> str:
    return f"the learning rate {method.learning_rate:g} is probably too high; lower it, or set max_grad_norm"
