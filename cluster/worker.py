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

from efface.cluster.plan import Calibration, Model, Shard
from efface.cluster.run_folder import Damaged, RunFolder, Work
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import JobFailure, Stopped, StorageError, UserError
from efface.files import local_copy, write_atomic
from efface.models.base import BaseSpec
from efface.models.recipe import Recipe

if TYPE_CHECKING:
    from efface.eval.judges.judge import Judge
    from efface.models.delta import Delta
    from efface.train.setup import Setup

CALIBRATION_SEEDS = (10_000, 10_001)
"""Image seeds of a judge's trial, apart from those of a campaign: one to fit on, one to measure on."""


@dataclass(frozen=True)
class Setting:
    """What all work of a campaign shares; small, and sent to every worker once."""

    root: str
    base: BaseSpec
    base_id: str
    concept_set: ConceptSet
    recipe: Recipe
    prompt_set: PromptSet
    calibrations: tuple[Calibration, ...]
    judged: tuple[Concept, ...]
    """Every concept that a judge will be asked about."""
    cpus: int
    gpus: float
    checkpoint_steps: int = 50
    """Optimiser steps between two checkpoints of a training."""
    wish: str | None = None
    """The last wish to stop that does not count any more."""
    processes: int = 1
    """How many train one job together."""
    launcher: str = "actors"
    """Who starts them."""
    setup: Mapping[str, Any] = field(default_factory=dict)
    """How jobs are run: fields of `train.setup.Setup`."""


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    `failed`: it cannot be done as asked, and trying again would not help. `fault`: something broke on the way. `lost`:
    its worker or node went away, which is not the work's fault. `stopped`: laid down on request. `storage`: results can
    be kept no more. `damaged`: the delta it builds on was, and has to be made again first. `spare`: a copy of it was
    done before.
    """

    state: Literal["done", "failed", "fault", "lost", "stopped", "storage", "damaged", "spare"]
    reason: str = ""
    details: str = ""
    worker_gone: bool = False
    """The worker can take no more work; another comes in its place."""
    halved: bool = False
    """The memory did not suffice, and it was done in batches of half the size."""
    out_of_memory: bool = False
    """The memory did not suffice. In a gang it takes all processes to halve their batches together."""


HALVED = "the memory does not suffice: again, in batches of half the size"

STOP_LOOKS = 1.0
"""Seconds between two looks at whether the run is to be laid down."""

SHOW_LOG = 10.0
"""Seconds after which others can see how far a training is."""


class Worker:
    """Holds the base; `run` does one piece of work and leaves its outputs and record in the run folder."""

    def __init__(self, setting: Setting, stopping: Callable[[], bool] | None = None, rank: int = 0) -> None:
        """`stopping`: whether to lay work down; default: whether the run folder has a new wish to stop.

        rank: in a gang, where rank 0 alone writes.
        """
        import torch

        from efface.models.attention import set_attention
        from efface.models.base import load_base

        torch.set_num_threads(setting.cpus)
        self.device = "cuda" if setting.gpus and torch.cuda.is_available() else "cpu"
        self.device_name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        if self.device == "cuda" and setting.gpus < 1:
            torch.cuda.set_per_process_memory_fraction(setting.gpus)
        self.setting = setting
        self._rank = rank
        self._in_gang = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.folder = RunFolder(setting.root)
        self.base = load_base(setting.base, self.device)
        if self.base.fingerprint != setting.base_id:
            raise UserError(
                f"base '{setting.base.name}' has fingerprint {self.base.fingerprint[:16]} on this node, "
                f"and {setting.base_id[:16]} where the campaign was planned"
            )
        attention = setting.setup.get("attention")
        self._attention = {"attention": set_attention(self.base.unet, attention)["used"]} if attention else {}
        self._judges: dict[str, Judge] = {}
        self._resident = self.base.fingerprint[:16]
        self._stopping = stopping or (lambda: self.folder.wish() not in (None, setting.wish))
        self._looked = self._shown = time.monotonic()
        self._log = io.StringIO()
        """What the work under way has printed."""

    def ready(self) -> str:
        """What tells this node from others, once everything is loaded."""
        return socket.gethostname()

    def run(self, work: Work, halve: bool = False) -> Outcome:
        """Train a job or judge a shard. Never raises: what goes wrong is told in the outcome, with its log.

        Out of memory, it is done again in batches of half the size; in a gang, where all `halve` together, at once so.
        """
        log = self._log = io.StringIO()
        outcome = Outcome("done")
        try:
            if self._cancelled(work):
                return Outcome("failed", "cancelled")
            if self.folder.record(work):
                return Outcome("done")  # a worker that went out of reach has finished it all the same
            with redirect_stdout(log), redirect_stderr(log):
                if halve:
                    print(HALVED)
                try:
                    self._do(work, halve)
                except Exception as error:
                    if not _out_of_memory(error) or self._in_gang:
                        raise
                    print(f"{error}\n{HALVED}")
                    error.__traceback__ = None  # it holds on to the tensors
                    self._do(work, halve=True)
                    outcome = Outcome("done", halved=True)
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
            outcome = Outcome("fault", reason, details, out_of_memory=_out_of_memory(error))
        if isinstance(work, Model) and not self._rank:
            return self._kept(work, outcome, log.getvalue())
        return outcome

    def _cancelled(self, work: Work) -> bool:
        """Whether the job, or that of the shard's model, was given up since."""
        model = work.model if isinstance(work, Shard) else work
        return isinstance(model, Model) and self.folder.failure(model) is not None

    def _do(self, work: Work, halve: bool) -> None:
        if isinstance(work, Calibration):
            self._calibrate(work, halve)
        elif isinstance(work, Model):
            self._train(work, halve)
        else:
            self._judge(work, halve)

    def _calibrate(self, trial: Calibration, halve: bool) -> None:
        from efface.eval.calibration import calibrate
        from efface.eval.judges.judge import load_judge

        start = time.perf_counter()
        self._put(None)
        judge = load_judge(trial.judge, self.device)
        setting = self.setting
        _, found = calibrate(
            judge,
            self.base,
            self._recipe(halve),
            setting.concept_set,
            setting.prompt_set,
            setting.judged,
            CALIBRATION_SEEDS,
        )
        path = self.folder.calibration(trial)
        found.save(path)
        self.folder.finish(trial, [path], **self._cost(start), **self._attention)

    def _train(self, model: Model, halve: bool) -> None:
        from efface.eval.weight_change import weight_change
        from efface.train.job import run_job

        assert model.job
        start = time.perf_counter()
        self._put(None)
        parent = self.folder.checked_parent(model)
        delta, metrics = run_job(
            model.job,
            self.base,
            self.setting.concept_set,
            lambda done, steps, loss: self._on_step(model, done, steps, loss),
            cache=self.folder.cache,
            parent=_load(parent) if parent else None,
            checkpoint=self.folder.checkpoint(model),
            every=self.setting.checkpoint_steps,
            setup=self._setup(model),
            halve_batch=halve,
        )
        if self._rank:
            return
        attention = metrics["attention"]
        if attention and attention["asked"] not in ("auto", attention["used"]):
            print(f"attention by {attention['asked']} is not to be had on this worker, {attention['used']} was used")
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

    def _setup(self, model: Model) -> "Setup":
        from efface.train.setup import Setup

        fields = dict(self.setting.setup)
        if fields.get("tracker"):
            fields["tracker_folder"] = self.folder.curves(model)
        return Setup.model_validate(fields)

    def _judge(self, shard: Shard, halve: bool) -> None:
        from efface.eval.evaluate import evaluate
        from efface.eval.table import write_table

        start = time.perf_counter()
        self._put(shard.model)
        verdicts, images = evaluate(
            self.base,
            self._recipe(halve),
            shard.questions,
            [self._judge_of(trial) for trial in self.setting.calibrations],
            self.setting.concept_set,
            model_id=shard.model.id,
            method=shard.model.label,
        )
        outputs = [self.folder.verdicts(shard), self.folder.images(shard)]
        for path, table in zip(outputs, (verdicts, images), strict=True):
            write_table(path, table)
        self.folder.finish(shard, outputs, images=len(shard.questions), **self._cost(start), **self._attention)

    def _judge_of(self, trial: Calibration) -> "Judge":
        from efface.eval.judges.judge import load_judge

        if trial.id not in self._judges:
            if not self.folder.verified(trial):
                raise Damaged(f"{self.folder.calibration(trial)}: is not as it was written")
            self._judges[trial.id] = load_judge(trial.judge, self.device, self.folder.calibration(trial))
        return self._judges[trial.id]

    def _put(self, model: Model | None) -> None:
        """Make the resident base the given model, or itself again."""
        wanted = model.id if model else self.base.fingerprint[:16]
        if wanted != self._resident:
            edited = model is not None and model.job is not None
            self.base.swap(_load(self.folder.checked_delta(model)) if edited and model else None)
            self._resident = wanted

    def _recipe(self, halve: bool) -> Recipe:
        recipe = self.setting.recipe
        return recipe.model_copy(update={"batch_size": max(1, recipe.batch_size // 2)}) if halve else recipe

    def _on_step(self, model: Model, done: int, steps: int, loss: float) -> None:
        """After every optimiser step. Raises Stopped where work is to be laid down, JobFailure if it was given up."""
        if done % max(1, steps // 20) == 0 or done == steps:
            print(f"step {done} of {steps}, loss {loss:.6g}")
        if not self._rank and time.monotonic() - self._shown >= SHOW_LOG:
            self._shown = time.monotonic()
            write_atomic(self.folder.log(model), self._log.getvalue().encode(errors="replace"))
        if time.monotonic() - self._looked >= STOP_LOOKS:
            self._looked = time.monotonic()
            if self._stopping():
                raise Stopped
            if self._cancelled(model):
                raise JobFailure("cancelled")

    def _cost(self, start: float) -> dict[str, Any]:
        return {"seconds": time.perf_counter() - start, "device": self.device_name}

    def _kept(self, model: Model, outcome: Outcome, printed: str) -> Outcome:
        """The outcome, once the log of the job's training is kept beside it."""
        told = f"{printed}{outcome.reason}\n" if outcome.reason else printed
        try:
            write_atomic(self.folder.log(model), told.encode(errors="replace"))
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
