"""The one training loop: a gradient method, a task, and an engine between them and the devices.

An optimiser step takes `gradient_accumulation_steps` batches. Batch `step * gradient_accumulation_steps + k` goes to
process `k mod processes`, and every batch is a function of (seed, number). So the same job on more processes sees the
same samples, and the state of a run between two steps is `(trained values, optimiser state, method's state, losses)`:
a checkpoint.

Trained tensors are fp32. The learning rate is a pure function of the step. Clipping is explicit, never a default.
Progress goes to the logger `efface.train.trainer.loop`, twenty lines a job.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from efface.errors import JobFailure, Stopped
from efface.models.attention_backend import AttentionInUse
from efface.models.network import Network
from efface.train.method import GradientMethod, TrainingConfig, UnlearningTask
from efface.train.trainer.checkpoint import Checkpoint, read, run_key, write
from efface.train.trainer.engine import Engine, broadcast_checkpoint, isolated_accelerate_state
from efface.train.trainer.make_engine import make_accelerator, make_engine
from efface.train.trainer.options import TrainingOptions, apply_training_options
from efface.train.trainer.pack import Member
from efface.train.trainer.packed_base import PackedBase
from efface.train.trainer.regularizers import Regularizers

logger = logging.getLogger(__name__)

OnStep = Callable[[int, int, float], None]
DEFAULT_OPTIONS = TrainingOptions()


class TrainOutput(NamedTuple):
    """The result of training."""

    tensors: dict[str, Tensor]
    """The delta's tensors, on the CPU."""
    losses: list[float]
    """Of every optimiser step, the mean over its batches."""
    attention: AttentionInUse | None
    """The student's attention as `set_attention` reports it; None: as it was in the base."""


def train(
    method: GradientMethod,
    task: UnlearningTask,
    on_step: OnStep | None = None,
    *,
    checkpoint: Path | None = None,
    save_steps: int = 50,
    training_options: TrainingOptions = DEFAULT_OPTIONS,
) -> TrainOutput:
    """Minimise the method's loss from the first step, or from the one after the checkpoint, to the last.

    `on_step(done, steps, loss)` is called after every optimiser step. It may raise Stopped, in any process of a group:
    then every process saves the checkpoint and raises Stopped. `checkpoint` is also written every `save_steps` steps,
    and read at the start, by the group's first process; it is left in place.

    Raises JobFailure where a loss, or a trained tensor at the end, is not finite; StorageError where the checkpoint
    cannot be written.
    """
    student = task.base.network(method.network).copy()
    method.add_adapters(student, task.seed)
    if method.saves_what_it_trains:
        student.own(method.trained(student).values())
    method.prepare(task, student)
    trained = method.trained(student)
    for value in trained.values():
        value.requires_grad_(True)
    # before the precision and the kernels are changed: what is selected should not depend on them
    regularizers = Regularizers(method, task, student, trained, training_options)
    saved = CheckpointConfig(checkpoint, run_key(method, task), save_steps)
    member = task.base.member if isinstance(task.base, PackedBase) else None
    options: AbstractContextManager[AttentionInUse | None] = (
        member.training()  # the networks are the pack's
        if member
        else apply_training_options(
            training_options, method.config.precision, task.base.denoiser, student, list(trained.values())
        )
    )
    with isolated_accelerate_state(), options as attention:
        training = setup_training(method, student, trained, training_options, saved, regularizers, member)
        with closing(training.engine):
            while training.step < method.steps:
                loss = train_step(training)
                after_step(training, on_step, loss, saved)
            with training.engine.gather_params():
                tensors = {name: value.to("cpu", copy=True) for name, value in method.saved(student).items()}
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise JobFailure(f"the trained weights are not finite after step {method.steps}: {_learning_rate_hint(method)}")
    return TrainOutput(tensors, training.losses, attention)


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run's checkpoint is written (None: nowhere), its key, and the steps between two writes."""

    path: Path | None
    key: str
    save_steps: int


@dataclass
class TrainState:
    """A run between two optimiser steps."""

    method: GradientMethod
    engine: Engine
    regularizers: Regularizers
    losses: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return len(self.losses)


def setup_training(
    method: GradientMethod,
    student: Network,
    trained: dict[str, nn.Parameter],
    training_options: TrainingOptions,
    saved: CheckpointConfig,
    regularizers: Regularizers,
    member: Member | None = None,
) -> TrainState:
    """A run before its first step, or before the one after its checkpoint. The model stays on the device it is on."""
    config: TrainingConfig = method.config
    accelerator = make_accelerator(next(iter(trained.values())).device, config, training_options)
    found = broadcast_checkpoint(accelerator, _read_checkpoint(saved, accelerator.is_main_process))
    if found:
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(found.trained[name])
    engine = make_engine(accelerator, student, trained, config, training_options, member)
    if found:
        method.restore(found.method)
        try:
            engine.restore(found.moments, len(found.losses))
        except BaseException:
            engine.close()
            raise
    return TrainState(method, engine, regularizers, list(found.losses) if found else [])


def _read_checkpoint(saved: CheckpointConfig, first: bool) -> Checkpoint | None:
    return read(saved.path, saved.key) if saved.path and first else None


def train_step(training: TrainState) -> float:
    """One optimiser step; its loss."""
    method, engine = training.method, training.engine
    config: TrainingConfig = method.config
    accelerator = engine.accelerator
    rate = method.learning_rate * learning_rate_factor(
        training.step,
        method.steps,
        config.warmup_steps,
        config.schedule,
        config.schedule_cycles,
        config.warmup_from_zero,
    )
    first = training.step * config.gradient_accumulation_steps
    losses = []
    norm = None
    with engine.gather_params():
        method.before_step(training.step)
    for k in range(accelerator.process_index, config.gradient_accumulation_steps, accelerator.num_processes):
        with torch.no_grad(), engine.gather_params():
            batch = method.batch(first + k)
        with engine.accumulate():
            loss = training.regularizers.loss(method.loss(engine.predict, batch), engine.predict, first + k)
            losses.append(loss.detach())
            norm = engine.backward_and_step(loss, rate, measure=bool(accelerator.trackers))
    mean = engine.mean(torch.stack(losses).mean())
    where = f"at step {training.step + 1} of {method.steps}"
    if not math.isfinite(mean):
        raise JobFailure(f"the loss is {mean} {where}: {_cause(training)}")
    if norm is not None and not math.isfinite(norm):
        raise JobFailure(f"the gradient is not finite {where}: {_cause(training)}")
    training.regularizers.after_step()
    with torch.no_grad(), engine.gather_params():
        method.after_step(training.step)
    training.losses.append(mean)
    if accelerator.is_main_process and (
        training.step % max(1, method.steps // 20) == 0 or training.step == method.steps
    ):
        logger.info("step %d of %d, loss %.6g", training.step, method.steps, mean)
    if accelerator.trackers:
        accelerator.log({"loss": mean, "learning_rate": rate, "gradient_norm": norm}, step=training.step)
    return mean


def after_step(training: TrainState, on_step: OnStep | None, loss: float, saved: CheckpointConfig) -> None:
    """Between two steps: call `on_step`, save what is due. Raises Stopped, in all processes of a group together."""
    stopped = None
    try:
        if on_step is not None:
            on_step(training.step, training.method.steps, loss)
    except Stopped as error:
        stopped = error
    stop = training.engine.any_process(stopped is not None)
    due = training.step % saved.save_steps == 0 and training.step < training.method.steps
    if saved.path and (due or stop):
        save(training, saved.path, saved.key)
    if stop:
        training.engine.accelerator.wait_for_everyone()  # the first process to end may have the others killed
        raise stopped or Stopped("another process of the group was stopped")


def save(training: TrainState, path: Path, key: str) -> None:
    """The run's checkpoint, collected from all processes of a group and written by the first."""
    trained, moments = training.engine.state()
    if training.engine.accelerator.is_main_process:
        write(path, key, Checkpoint(training.losses, trained, moments, training.method.state()))


def learning_rate_factor(
    step: int, steps: int, warmup_steps: int, schedule: str, cycles: int = 1, warmup_from_zero: bool = False
) -> float:
    """The share of the learning rate at step 0, 1, …: rises from 1 / warm-up, or 0, then goes by the schedule."""
    if step < warmup_steps:
        return (step + (not warmup_from_zero)) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * (cycles * done % 1))) if schedule == "cosine" else 1.0


def _cause(training: TrainState) -> str:
    if training.step == 0:
        return "nothing was trained yet, so the base itself, or the method's data, is not finite"
    return _learning_rate_hint(training.method)


def _learning_rate_hint(method: GradientMethod) -> str:
    return f"the learning rate {method.learning_rate:g} is probably too high; lower it, or set max_grad_norm"
