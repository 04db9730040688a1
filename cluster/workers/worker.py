"""The worker: a base and its judges, resident in one process, that trains jobs and judges shards one after another.

It knows nothing of Ray. The same class runs inside a Ray actor, in the driver's own process, or in a test.
"""

import io
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from efface.cluster.campaign.plan import CalibrationTask, Model, Shard
from efface.cluster.storage.lease import check_shared
from efface.cluster.storage.run_folder import Damaged, RunFolder, Task
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import JobFailure, Stopped, StorageError, UserError
from efface.files import as_path, local_copy, write_atomic
from efface.models.base import BaseSpec
from efface.models.recipe import Recipe

if TYPE_CHECKING:
    from efface.eval.judge import Judge
    from efface.models.delta import Delta
    from efface.train.trainer.options import TrainingOptions

CALIBRATION_SEEDS = (10_000, 10_001)
"""Image seeds of a judge's trial, apart from those of a campaign: one to fit on, one to measure on."""


@dataclass(frozen=True)
class WorkerContext:
    """What all work of a campaign shares; small, and sent to every worker once."""

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
    checkpoint_steps: int = 50
    """Optimiser steps between two checkpoints of a training."""
    stop_request: str | None = None
    """The last wish to stop that does not count any more."""
    processes: int = 1
    """How many train one job together."""
    launcher: str = "actors"
    """Who starts them."""
    training_options: Mapping[str, Any] = field(default_factory=dict)
    """How jobs are run: fields of `train.setup.Setup`."""
    lease: str | None = None
    """The id of the driver's lease, by which a worker knows that it sees the same run folder; None: not checked."""


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    `failed`: it cannot be done as asked, and trying again would not help. `error`: something broke on the way.
    `worker_lost`:
    its worker or node went away, which is not the work's fault. `stopped`: laid down on request. `storage`: results can
    be kept no more. `damaged`: the delta it builds on was, and has to be made again first. `superseded`: a copy of it
    was done before.
    """

    state: Literal["done", "failed", "error", "worker_lost", "stopped", "storage", "damaged", "superseded"]
    reason: str = ""
    details: str = ""
    worker_gone: bool = False
    """The worker can take no more work; another comes in its place."""
    smaller_batch: bool = False
    """The memory did not suffice, and it was done in batches of half the size."""
    out_of_memory: bool = False
    """The memory did not suffice. In a gang it takes all processes to halve their batches together."""


SMALLER_BATCH_NOTE = "the memory does not suffice: again, in batches of half the size"

STOP_POLL_INTERVAL = 1.0
"""Seconds between two looks at whether the run is to be laid down."""

LOG_FLUSH_INTERVAL = 10.0
"""Seconds after which others can see how far a training is."""


class Worker:
    """Holds the base; `run` does one piece of work and leaves its outputs and record in the run folder."""

    def __init__(self, context: WorkerContext, should_stop: Callable[[], bool] | None = None, rank: int = 0) -> None:
        """`should_stop`: whether to lay work down; default: whether the run folder has a new wish to stop.

        rank: in a gang, where rank 0 alone writes.
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
        self._rank = rank
        self._in_process_group = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.folder = RunFolder(context.root)
        self.base = load_base(context.base, self.device)
        if self.base.fingerprint != context.base_id:
            raise UserError(
                f"base '{context.base.name}' has fingerprint {self.base.fingerprint[:16]} on this node, "
                f"and {context.base_id[:16]} where the campaign was planned"
            )
        attention = context.training_options.get("attention")
        self._attention = {"attention": set_attention(self.base.unet, attention)["used"]} if attention else {}
        self._judges: dict[str, Judge] = {}
        self._resident = self.base.fingerprint[:16]
        self._should_stop = should_stop or (lambda: self.folder.stop_request() not in (None, context.stop_request))
        self._last_poll = self._last_log_flush = time.monotonic()
        self._log = io.StringIO()
        """What the work under way has printed."""

    def ready(self) -> str:
        """What tells this node from others, once everything is loaded."""
        return socket.gethostname()

    def run(self, task: Task, smaller_batch: bool = False) -> Outcome:
        """Train a job or judge a shard. Never raises: what goes wrong is told in the outcome, with its log.

        Out of memory, it is done again in batches of half the size; in a gang, where all `smaller_batch` together, at
        once so.
        """
        log = self._log = io.StringIO()
        outcome = Outcome("done")
        try:
            if self._cancelled(task):
                return Outcome("failed", "cancelled")
            if self.folder.record(task):
                return Outcome("done")  # a worker that went out of reach has finished it all the same
            with redirect_stdout(log), redirect_stderr(log):
                if smaller_batch:
                    print(SMALLER_BATCH_NOTE)
                try:
                    self._execute(task, smaller_batch)
                except Exception as error:
                    if not _out_of_memory(error) or self._in_process_group:
                        raise
                    print(f"{error}\n{SMALLER_BATCH_NOTE}")
                    error.__traceback__ = None  # it holds on to the tensors
                    self._execute(task, smaller_batch=True)
                    outcome = Outcome("done", smaller_batch=True)
        except Stopped:
            outcome = Outcome("stopped", "laid down")
        except Damaged as error:
            outcome = Outcome("damaged", str(error))
        except StorageError as error:
            outcome = Outcome("storage", str(error), log.getvalue())
        except (JobFailure, UserError) as error:
            outcome = Outcome("failed", str(error), log.getvalue() + traceback.format_exc())
        except Exception as error:
            reason, details = f"{type(error).__name__}: {error}", log.getvalue() + traceback.format_exc()
            outcome = Outcome("error", reason, details, out_of_memory=_out_of_memory(error))
        if isinstance(task, Model) and not self._rank:
            return self._save_log(task, outcome, log.getvalue())
        return outcome

    def _cancelled(self, task: Task) -> bool:
        """Whether the job, or that of the shard's model, was given up since."""
        model = task.model if isinstance(task, Shard) else task
        return isinstance(model, Model) and self.folder.failure(model) is not None

    def _execute(self, task: Task, smaller_batch: bool) -> None:
        if isinstance(task, CalibrationTask):
            self._calibrate(task, smaller_batch)
        elif isinstance(task, Model):
            self._train(task, smaller_batch)
        else:
            self._judge(task, smaller_batch)

    def _calibrate(self, calibration: CalibrationTask, smaller_batch: bool) -> None:
        from efface.eval.calibration import calibrate
        from efface.eval.judge import load_judge

        start = time.perf_counter()
        self._set_resident(None)
        judge = load_judge(calibration.judge, self.device)
        context = self.context
        _, result = calibrate(
            judge,
            self.base,
            self._recipe(smaller_batch),
            context.concept_set,
            context.prompt_set,
            context.judged,
            CALIBRATION_SEEDS,
        )
        path = self.folder.calibration(calibration)
        result.save(path)
        self.folder.finish(calibration, [path], **self._cost(start), **self._attention)

    def _train(self, model: Model, smaller_batch: bool) -> None:
        from efface.eval.metrics.weight_change import weight_change
        from efface.train.job import run_job

        assert model.job
        start = time.perf_counter()
        self._set_resident(None)
        parent = self.folder.checked_parent(model)
        delta, metrics = run_job(
            model.job,
            self.base,
            self.context.concept_set,
            lambda done, steps, loss: self._on_step(model, done, steps, loss),
            cache=self.folder.cache,
            parent=_load(parent) if parent else None,
            checkpoint=self.folder.checkpoint(model),
            save_steps=self.context.checkpoint_steps,
            training_options=self._training_options(model),
            reduce_micro_batch=smaller_batch,
        )
        if self._rank:
            return
        attention = metrics["attention"]
        if attention and attention["requested"] not in ("auto", attention["used"]):
            print(
                f"attention by {attention['requested']} is not to be had on this worker, {attention['used']} was used"
            )
        path = self.folder.delta(model)
        _save(delta, path)
        self.folder.finish(
            model,
            [path],
            label=model.label,
            job=model.job.model_dump(mode="json"),
            metrics=metrics,
            weight_change=weight_change(self.base, delta),
            **self._cost(start),
        )

    def _training_options(self, model: Model) -> "TrainingOptions":
        from efface.train.trainer.options import TrainingOptions

        fields = dict(self.context.training_options)
        if fields.get("tracker"):
            fields["tracker_folder"] = self.folder.curves(model)
        return TrainingOptions.model_validate(fields)

    def _judge(self, shard: Shard, smaller_batch: bool) -> None:
        from efface.eval.evaluate import evaluate
        from efface.eval.image_table import write_table

        start = time.perf_counter()
        self._set_resident(shard.model)
        verdicts, images = evaluate(
            self.base,
            self._recipe(smaller_batch),
            shard.eval_requests,
            [self._load_judge(calibration) for calibration in self.context.calibrations],
            self.context.concept_set,
            model_id=shard.model.id,
            method=shard.model.label,
        )
        outputs = [self.folder.verdicts(shard), self.folder.images(shard)]
        for path, table in zip(outputs, (verdicts, images), strict=True):
            write_table(path, table)
        self.folder.finish(shard, outputs, images=len(shard.eval_requests), **self._cost(start), **self._attention)

    def _load_judge(self, calibration: CalibrationTask) -> "Judge":
        from efface.eval.judge import load_judge

        if calibration.id not in self._judges:
            if not self.folder.verified(calibration):
                raise Damaged(f"{self.folder.calibration(calibration)}: is not as it was written")
            self._judges[calibration.id] = load_judge(
                calibration.judge, self.device, self.folder.calibration(calibration)
            )
        return self._judges[calibration.id]

    def _set_resident(self, model: Model | None) -> None:
        """Make the resident base the given model, or itself again."""
        resident = model.id if model else self.base.fingerprint[:16]
        if resident != self._resident:
            edited = model is not None and model.job is not None
            self.base.swap(_load(self.folder.checked_delta(model)) if edited and model else None)
            self._resident = resident

    def _recipe(self, smaller_batch: bool) -> Recipe:
        recipe = self.context.recipe
        return recipe.model_copy(update={"batch_size": max(1, recipe.batch_size // 2)}) if smaller_batch else recipe

    def _on_step(self, model: Model, done: int, steps: int, loss: float) -> None:
        """After every optimiser step. Raises Stopped where work is to be laid down, JobFailure if it was given up."""
        if done % max(1, steps // 20) == 0 or done == steps:
            print(f"step {done} of {steps}, loss {loss:.6g}")
        if not self._rank and time.monotonic() - self._last_log_flush >= LOG_FLUSH_INTERVAL:
            self._last_log_flush = time.monotonic()
            write_atomic(self.folder.log(model), self._log.getvalue().encode(errors="replace"))
        if time.monotonic() - self._last_poll >= STOP_POLL_INTERVAL:
            self._last_poll = time.monotonic()
            if self._should_stop():
                raise Stopped
            if self._cancelled(model):
                raise JobFailure("cancelled")

    def _cost(self, start: float) -> dict[str, Any]:
        return {"seconds": time.perf_counter() - start, "device": self.device_name}

    def _save_log(self, model: Model, outcome: Outcome, printed: str) -> Outcome:
        """The outcome, once the log of the job's training is kept beside it."""
        text = f"{printed}{outcome.reason}\n" if outcome.reason else printed
        try:
            write_atomic(self.folder.log(model), text.encode(errors="replace"))
        except StorageError as error:
            return Outcome("storage", str(error)) if outcome.state == "done" else outcome
        return outcome


def _load(path: Any) -> "Delta":
    from efface.models.delta import Delta

    with local_copy(path) as file:
        return Delta.load(file)


def _save(delta: "Delta", path: Any) -> None:
    with local_copy(path) as file:
        delta.save(file)
        if file != path:
            write_atomic(path, file.read_bytes())


def _out_of_memory(error: Exception) -> bool:
    """Whether a GPU, or this machine, had too little memory."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
