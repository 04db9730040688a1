"""The worker: a base and its judges, resident in one process, that does one task after another.

It knows no kind of task, and nothing of Ray: tasks use what it holds. The same class runs inside a Ray actor, in the
driver's own process, or in a test.
"""

import copy
import io
import logging
import math
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.cluster.storage import under_way
from efface.cluster.storage.lease import check_shared
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.storage.under_way import Count, Steps, note_count, remove_count
from efface.cluster.tasks.calibration import CALIBRATION, CalibrationTask
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.prompt_search import FOUND, PromptCheck
from efface.cluster.tasks.retry_rules import Outcome, outcome_of_error
from efface.cluster.tasks.task import DamagedInput, Task
from efface.cluster.workers.executor import Ready
from efface.cluster.workers.log_capture import log_to
from efface.cluster.workers.matmul_speed import matmul_speed
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet
from efface.config_files import read_config
from efface.errors import JobFailure, Stopped, StorageError, UserError
from efface.eval.attacking.found_prompts import FoundPrompts
from efface.files import as_path, write_atomic
from efface.models.base import BaseSpec
from efface.models.recipe import Recipe

if TYPE_CHECKING:
    from efface.eval.judge import Judge
    from efface.train.trainer.pack import Member


@dataclass(frozen=True)
class WorkerContext:
    """What all tasks of a campaign share; small, and sent to every worker once."""

    root: str
    base: BaseSpec
    base_id: str
    concept_set: ConceptSet
    recipe: Recipe
    prompt_set: PromptSet
    calibrations: tuple[CalibrationTask, ...]
    judged: tuple[Concept, ...]
    """Every concept that a judge will be asked about."""
    cpus: int
    gpus: float
    prompt_checks: tuple[PromptCheck, ...] = ()
    """What finds the prompts that stand as slots in what is asked."""
    checkpoint_steps: int = 50
    """Optimiser steps between two checkpoints of a training."""
    stop_request: str | None = None
    """The last request to stop that does not count any more."""
    processes: int = 1
    """How many do a task together, where several can."""
    launcher: str = "actors"
    """Who starts them."""
    training_options: Mapping[str, Any] = field(default_factory=dict)
    """How jobs are run: fields of `train.trainer.options.TrainingOptions`."""
    lease: str | None = None
    """The id of the driver's lease, by which a worker knows that it sees the same run folder; None: not checked."""


logger = logging.getLogger(__name__)

SMALLER_BATCH_NOTE = "out of memory: trying again with a smaller batch"

STOP_POLL_INTERVAL = 1.0
"""Seconds between two looks at whether to stop."""


class Worker:
    """Holds the base; `run` does one task, which leaves its outputs and record in the run folder."""

    def __init__(self, context: WorkerContext, should_stop: Callable[[], bool] | None = None, rank: int = 0) -> None:
        """`should_stop`: whether to interrupt tasks; default: whether the run folder has a new request to stop.

        rank: in a process group, where rank 0 alone writes.
        """
        check_shared(as_path(context.root), context.lease)
        import torch

        from efface.models.attention import set_attention
        from efface.models.base import load_base

        torch.set_num_threads(context.cpus)
        self.device = "cuda" if context.gpus and torch.cuda.is_available() else "cpu"
        self.device_name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        if self.device == "cuda" and context.gpus < 1:
            torch.cuda.set_per_process_memory_fraction(context.gpus)
        self.context = context
        self.rank = rank
        self._in_process_group = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.folder = RunFolder(context.root)
        self.base = load_base(context.base, self.device)
        if self.base.fingerprint != context.base_id:
            raise UserError(
                f"base '{context.base.name}' has fingerprint {self.base.fingerprint[:16]} on this node, "
                f"and {context.base_id[:16]} where the campaign was planned"
            )
        attention = context.training_options.get("attention")
        self._attention = {"attention": set_attention(self.base.unet, attention).used} if attention else {}
        self._judges: dict[str, Judge] = {}
        self._uncalibrated: dict[str, Judge] = {}
        self._found: dict[str, FoundPrompts] = {}
        self._resident = self.base.fingerprint[:16]
        self._should_stop = should_stop or (lambda: self.folder.stop_request() not in (None, context.stop_request))
        self._last_poll, self._last_note = time.monotonic(), -math.inf
        self.smaller_batch = False
        """Whether the task under way is to take less memory, for it did not suffice before."""
        self._log = io.StringIO()
        """What the task under way has logged."""
        self._began = False
        """Whether there was anything to do of it."""
        self._clock: Callable[[], float] = time.perf_counter
        self._start = self._clock()
        """When it began."""

    def ready(self) -> Ready:
        """Answers once everything is loaded."""
        return Ready(socket.gethostname(), matmul_speed() if self.device == "cuda" else 1.0)

    def run(self, task: Task, smaller_batch: bool = False) -> Outcome:
        """Do a task. Never raises: what goes wrong is described in the outcome, with its log.

        Out of memory, it is done again with a smaller batch; in a process group, where all `smaller_batch` together,
        at once so.
        """
        self._log, self._began, self._note = io.StringIO(), False, ""
        self._last_note = -math.inf  # the first step is written down at once, for whoever watches
        outcome = self._outcome(task, smaller_batch)
        return self._save_log(task, outcome) if self._began and not self.rank else outcome

    def run_pack(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Do trainings of one `pack_key` together, as many at a time as memory has room for. Never raises.

        Each is done as `run` does it, with its own log, record and outcome; where the pack itself goes wrong, alone.
        """
        try:
            return self._run_pack(tasks)
        except Exception:
            logger.exception("jobs could not be packed, and are trained one by one")
            return [self.run(task) for task in tasks]

    def _run_pack(self, tasks: Sequence[Task]) -> list[Outcome]:
        from efface.train.job_packs import most_jobs, run_packed
        from efface.train.trainer.options import TrainingOptions

        self.set_resident(None)
        jobs = [task.model.job for task in tasks if task.model and task.model.job]
        shared = {name: value for name, value in self.context.training_options.items() if name != "tracker"}
        options = TrainingOptions.model_validate(shared)
        most = most_jobs(jobs, self.base, options)
        if most == 1:
            return [self.run(task) for task in tasks]
        outcomes: list[Outcome] = []
        for start in range(0, len(tasks), most):
            part = slice(start, start + most)
            works = [partial(self._run_member, task) for task in tasks[part]]
            outcomes += run_packed(jobs[part], works, self.base, options)
        return outcomes

    def _run_member(self, task: Task, member: "Member") -> Outcome:
        """`run`, by a worker that holds the base as the member of a pack sees it."""
        own = copy.copy(self)
        own.base, own._clock = member.base, member.clock
        return own.run(task)

    def _outcome(self, task: Task, smaller_batch: bool) -> Outcome:
        log = self._log
        try:
            if self._cancelled(task):
                return Outcome.failed("cancelled")
            if self.folder.record(task):
                return Outcome.done()  # a worker that went out of reach has finished it all the same
            with log_to(log):
                smaller = self._execute(task, smaller_batch)
            return Outcome.done(smaller_batch=smaller, note=self._note)
        except Exception as error:
            if isinstance(error, DamagedInput):
                self.folder.withdraw(error.record)
            return outcome_of_error(error, log.getvalue(), traceback.format_exc())

    def _execute(self, task: Task, smaller_batch: bool) -> bool:
        """Whether it was only done with a smaller batch, after it had run out of memory."""
        self._began, self._start, self.smaller_batch = True, self._clock(), smaller_batch
        if smaller_batch:
            logger.warning(SMALLER_BATCH_NOTE)
        try:
            task.run(self)
        except Exception as error:
            from efface.models.out_of_memory import is_out_of_memory

            if not is_out_of_memory(error) or self._in_process_group:
                raise
            logger.warning("%s\n%s", error, SMALLER_BATCH_NOTE)
            error.__traceback__ = None  # it holds on to the tensors
            self._start, self.smaller_batch = self._clock(), True
            task.run(self)
            return True
        return False

    # what tasks use

    @property
    def recipe(self) -> Recipe:
        """How images are made; with half the batch where the memory did not suffice."""
        recipe = self.context.recipe
        if not self.smaller_batch:
            return recipe
        from efface.models.sampling.batch_size import batch_size

        tried = batch_size(self.base, recipe, recipe.largest_batch)
        return recipe.model_copy(update={"batch_size": max(1, tried // 2)})

    def set_resident(self, model: Model | None) -> None:
        """Make the resident base the given model, or the unedited base again. Raises DamagedInput."""
        resident = model.id if model else self.base.fingerprint[:16]
        if resident != self._resident:
            self.base.swap(self.folder.read_delta(model) if model and model.job else None)
            self._resident = resident

    def judges(self) -> "list[Judge]":
        """Every judge of the campaign, calibrated and in memory. Raises DamagedInput."""
        return [self._load_judge(calibration) for calibration in self.context.calibrations]

    def uncalibrated(self, judge: str) -> "Judge":
        """A judge by name or YAML file, in memory, as it is before its calibration."""
        from efface.eval.judging.judge_spec import load_judge

        if judge not in self._uncalibrated:
            self._uncalibrated[judge] = load_judge(judge, self.device)
        return self._uncalibrated[judge]

    def found_prompts(self, check: str) -> FoundPrompts:
        """What the check of prompts with this id came to. Raises DamagedInput."""
        if check not in self._found:
            task = next(task for task in self.context.prompt_checks if task.id == check)
            path = self.folder.output(task, FOUND)
            if not self.folder.is_intact(task):
                raise DamagedInput(path, self.folder.record_file(task))
            self._found[check] = read_config(FoundPrompts, path)
        return self._found[check]

    def on_step(self, task: Task, done: int, steps: int, loss: float) -> None:
        """After every optimiser step. Raises Stopped where it is to be interrupted, JobFailure if it was given up."""
        path = self.folder.task_log(task)
        if path and not self.rank and self._is_note_due():
            write_atomic(path, f"{self._log.getvalue()}{Steps(done, steps, loss)}\n".encode(errors="replace"))
        if time.monotonic() - self._last_poll >= STOP_POLL_INTERVAL:
            self._last_poll = time.monotonic()
            if self._should_stop():
                raise Stopped
            if self._cancelled(task):
                raise JobFailure("cancelled")

    @contextmanager
    def counting(self, task: Task, of: int, unit: str = "image") -> Iterator[Callable[[int], None]]:
        """A block that makes so many images of a task; what it gives is called with how many more there are."""
        done, is_noted = 0, False

        def count(more: int) -> None:
            nonlocal done, is_noted
            done += more
            if done < of and self._is_note_due():
                is_noted = True
                note_count(self.folder, task, Count(unit, done, of, self._clock() - self._start))

        try:
            yield count
        finally:
            if is_noted:
                remove_count(self.folder, task)

    def _is_note_due(self) -> bool:
        """Whether others should hear again how far the task under way is."""
        now = time.monotonic()
        if now - self._last_note < under_way.INTERVAL:
            return False
        self._last_note = now
        return True

    def finish(self, task: Task, outputs: Iterable[Path], note: str = "", **facts: Any) -> None:
        """Write the record of the task under way, with what it took; `note` is for whoever watches the run."""
        self._note = note
        seconds = self._clock() - self._start
        facts = {**self._attention, **facts}
        self.folder.finish(task, outputs, seconds=seconds, device=self.device_name, **facts)

    def _cancelled(self, task: Task) -> bool:
        """Whether the model was given up since."""
        return task.model is not None and self.folder.failure(task.model) is not None

    def _load_judge(self, calibration: CalibrationTask) -> "Judge":
        from efface.eval.calibration.calibration import calibrated, read_calibration

        if calibration.id not in self._judges:
            path = self.folder.output(calibration, CALIBRATION)
            if not self.folder.is_intact(calibration):
                raise DamagedInput(path, self.folder.record_file(calibration))
            self._judges[calibration.id] = calibrated(self.uncalibrated(calibration.judge), read_calibration(path))
        return self._judges[calibration.id]

    def _save_log(self, task: Task, outcome: Outcome) -> Outcome:
        """The outcome, once what the task logged is kept, where it is."""
        path = self.folder.task_log(task)
        if path is None:
            return outcome
        text = self._log.getvalue() + (f"{outcome.reason}\n" if outcome.reason else "")
        try:
            write_atomic(path, text.encode(errors="replace"))
        except StorageError as error:
            return Outcome.storage(str(error)) if outcome.is_done else outcome
        return outcome
