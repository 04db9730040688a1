"""One job on several processes, without Ray: what each of them does, and a command for torchrun.

    torchrun --nproc-per-node 8 -m efface.train.torchrun work.json
    accelerate launch --num_processes 8 --multi_gpu -m efface.train.torchrun work.json

`work.json` is a `TorchrunJob`. Whatever starts the processes (torchrun, Accelerate, a group of Ray actors) sets
torchrun's variables in each of them: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without them the
process is alone. More in docs/multi-gpu.md.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from pydantic import Field
from torch import distributed

from efface.concepts.concept import load_concept_set
from efface.config_files import LocalPath, StrictModel, parse
from efface.errors import JobFailure, Stopped, UserError
from efface.files import exists, local_path, unless_taken, write_json
from efface.models.base import load_base
from efface.models.delta import Delta
from efface.plain_files import read_plain
from efface.train.job import Job, is_result
from efface.train.run_job import run_job
from efface.train.trainer.loop import OnStep
from efface.train.trainer.options import TrainingOptions
from efface.train.training_metrics import TrainingMetrics

# Processes reach a common step as far apart as their roll-outs and their reading of the base are long. (DeepSpeed makes
# groups of its own, with NCCL's ten minutes.)
PROCESS_GROUP_TIMEOUT = timedelta(minutes=30)

logger = logging.getLogger("efface.train.torchrun")  # this module is also run as __main__


class TorchrunJob(StrictModel):
    """A job and everything a process needs to take part in it; the same in all of them."""

    job: Job
    base: str = Field(description="name or path of the base; its fingerprint has to be the job's")
    concept_set: str = Field(description="name or path of the concept set; its hash has to be the job's")
    out: LocalPath = Field(description="where the first process saves the delta, and beside it, as .json, its metrics")
    parent: LocalPath | None = Field(None, description="delta of the request before, in a chain")
    cache: LocalPath | None = Field(None, description="folder of costly data, for instance anchor images")
    checkpoint: LocalPath | None = Field(None, description="written by the first process; gone when the job is done")
    save_steps: int = Field(50, ge=1, description="optimiser steps between two checkpoints")
    training_options: TrainingOptions = TrainingOptions()
    reduce_micro_batch: bool = Field(
        False, description="as many samples a step in twice the batches, after an out-of-memory"
    )
    force: bool = Field(False, description="replace files of the results' names, whatever they are")

    @property
    def metrics(self) -> Path:
        """Where the first process writes what the training measured."""
        return self.out.with_suffix(".json")


def run_rank(work: TorchrunJob, on_step: OnStep | None = None) -> TrainingMetrics:
    """This process's part of the work; the first of the group saves the delta. The metrics of `run_job`.

    All processes call it. Raises what `run_job` raises; Stopped in all of them where one was stopped.
    """
    with process_group():
        parent = Delta.load(work.parent) if work.parent else None
        delta, metrics = run_job(
            work.job,
            load_base(work.base, _device()),
            load_concept_set(work.concept_set),
            on_step,
            work.cache,
            parent=parent,
            checkpoint=work.checkpoint,
            save_steps=work.save_steps,
            training_options=work.training_options,
            reduce_micro_batch=work.reduce_micro_batch,
        )
        if _rank() == 0:
            delta.save(unless_taken(work.out, work.job.id, partial(is_result, job=work.job), work.force))
            path = unless_taken(work.metrics, work.job.id, partial(_is_metrics, job=work.job), work.force)
            write_json(path, {"job_id": work.job.id, **metrics.model_dump(mode="json")})
            if work.checkpoint:
                work.checkpoint.unlink(missing_ok=True)
    return metrics


@contextmanager
def process_group() -> Iterator[None]:
    """The process group that torchrun's variables describe; none where there is one process, or a group already.

    Jobs one after another go within one `process_group()`: a second group at the same port can meet what is left of
    the first.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def init_process_group(backend: str) -> None:
    """Make the process group that torchrun's variables describe. Raises DistError, also where the port is taken."""
    distributed.init_process_group(backend, timeout=PROCESS_GROUP_TIMEOUT)


def _device() -> str:
    """This process's GPU: that of its local rank, or the only one it sees, as under Ray; else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    if torch.cuda.device_count() == 1 and "LOCAL_RANK" in os.environ:
        os.environ["LOCAL_RANK"] = "0"  # Accelerate and DeepSpeed take the local rank for the device
    device = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(device)
    return f"cuda:{device}"


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def main(arguments: list[str]) -> int:
    """Exit code 0; 2 for a user's mistake, 1 for a job that cannot be finished, 130 for one that was stopped."""
    with _log_to_stderr():
        return _run(arguments)


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Progress of the first process, and errors of all."""
    ours, handler = logging.getLogger("efface"), logging.StreamHandler(sys.stderr)
    before = ours.level
    ours.setLevel(logging.INFO if _rank() == 0 else logging.WARNING)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)


def _run(arguments: list[str]) -> int:
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))

    def on_step(done: int, steps: int, loss: float) -> None:
        if signals:
            raise Stopped(f"stopped at step {done} of {steps}")

    try:
        if len(arguments) != 1:
            raise UserError(f"efface.train.torchrun takes one file, work.json, not {len(arguments)}")
        work = _read(local_path(arguments[0]))
        check_results(work)
        run_rank(work, on_step)
    except (UserError, JobFailure, Stopped) as error:
        if _rank() == 0:
            logger.error("%s", error)
        elif not isinstance(error, Stopped):
            logger.error("process %d: %s", _rank(), error)
        return {UserError: 2, JobFailure: 1, Stopped: 130}.get(type(error), 2)
    return 0


def check_results(work: TorchrunJob) -> None:
    """Raises UserError where the results would replace files that are none of this job's, or each other."""
    if work.metrics == work.out:
        raise UserError(f"{work.out}: ends in .json, as the metrics beside it do; should end in .safetensors")
    own = {work.out: is_result(work.out, work.job), work.metrics: _is_metrics(work.metrics, work.job)}
    for path, is_own in own.items():
        if exists(path) and not is_own and not work.force:
            raise UserError(
                f"{path}: exists already and is not the result of this job; move it away, or have `efface unlearn` "
                "write the job for another --out, or with --force"
            )


def _is_metrics(path: Path, job: Job) -> bool:
    """Whether a file holds what the training of this very job measured."""
    try:
        return bool(json.loads(read_plain(path))["job_id"] == job.id)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def is_torchrun_job(path: Path, job: Job) -> bool:
    """Whether a file describes this very job for torchrun."""
    try:
        return _read(path).job.id == job.id
    except UserError:
        return False


def _read(path: Path) -> TorchrunJob:
    try:
        text = read_plain(path).decode()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{path}: cannot be read, should be a JSON file that efface.train.torchrun.TorchrunJob describes"
        ) from None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    work = parse(TorchrunJob, data, str(path))
    if work.out.with_suffix(".json").absolute() == path.absolute():
        raise UserError(f"{path}: out: its metrics would be written over this file, give it another name")
    return work


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
