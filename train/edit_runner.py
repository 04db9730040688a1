"""Running the edits that a job is made of: one, or those of a composed method, in one count of steps.

A trained edit of a composed job is kept in the job's cache, as a function of all that it follows from: so a job that
was stopped goes on with the edit it was at, and requests of a chain share what they repeat.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from efface.errors import StorageError, UserError
from efface.models.attention_backend import AttentionInUse
from efface.models.delta import Delta, Kind, stack
from efface.train.collectives import all_gather
from efface.train.composed_method import ComposedMethod, as_delta
from efface.train.data.score_distance import AnchoredConfig, with_nearest_anchors
from efface.train.method import ClosedFormMethod, GradientMethod, Method, UnlearningTask
from efface.train.trainer.checkpoint import run_key
from efface.train.trainer.loop import OnStep, train
from efface.train.trainer.options import TrainingOptions


@dataclass
class EditRunner:
    """What edits have in common, and what they have come to."""

    on_step: OnStep | None
    checkpoint: Path | None
    save_steps: int
    options: TrainingOptions
    steps: int
    """Of all edits together."""
    composed: bool
    losses: list[float] = field(default_factory=list)
    samples_seen: int = 0
    attention: AttentionInUse | None = None
    done: int = 0

    def run(self, method: Method, task: UnlearningTask) -> tuple[Kind, dict[str, Tensor]]:
        """Kind and tensors of the edit, relative to the unedited base, of whatever is in place together with it."""
        below = task.base.applied
        if isinstance(method, ComposedMethod):
            return method.compose(task, self.run)
        if isinstance(method, GradientMethod):
            kind, tensors = self._trained(method, task)
        else:
            assert isinstance(method, ClosedFormMethod)
            kind, tensors = method.delta_kind, method.solve(task)
        return stack(task.base, below, kind, tensors) if below is not None else (kind, tensors)

    def _trained(self, method: GradientMethod, task: UnlearningTask) -> tuple[Kind, dict[str, Tensor]]:
        if isinstance(method.config, AnchoredConfig) and method.config.map_to == "nearest":
            task = with_nearest_anchors(task)
        file = task.cache / f"edit-{run_key(method, task)}.safetensors" if self.composed and task.cache else None
        if file and all(all_gather(file.is_file())):
            with suppress(UserError):  # a damaged one is made again
                known = Delta.load(file)
                self.done += method.steps
                return known.kind, known.tensors
        tensors, losses, attention = train(
            method,
            task,
            self._counting(),
            checkpoint=self.checkpoint,
            save_steps=self.save_steps,
            training_options=self.options,
        )
        self.done += method.steps
        self.losses += losses
        self.samples_seen += len(losses) * method.config.batch_size * method.config.gradient_accumulation_steps
        self.attention = attention
        if file:
            with suppress(StorageError):  # a cache that cannot be written costs time only
                as_delta(task, method.delta_kind, tensors).save(file)
        return method.delta_kind, tensors

    def _counting(self) -> Callable[[int, int, float], None] | None:
        if self.on_step is None:
            return None
        before, on_step = self.done, self.on_step
        return lambda done, steps, loss: on_step(before + done, self.steps, loss)


def steps_of(method: Method, concepts: int, continual: bool) -> int:
    """Optimiser steps of a job of so many concepts; 0 for a closed form."""
    if isinstance(method, ComposedMethod):
        return sum(steps_of(edit.made(), count, continual) for edit, count in method.runs(concepts, continual))
    return method.steps if isinstance(method, GradientMethod) else 0
