"""`efface unlearn`: one job in this process, or written to a file for torchrun."""

import logging
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.errors import UserError
from efface.files import local_path, unless_taken, write_json
from efface.launch.arguments.job_request import JobRequest, read_request
from efface.launch.arguments.key_values import parse_key_values
from efface.launch.arguments.options import DELTA, LOCAL, BaseOption, ConceptsOption, DeviceOption, ForceOption
from efface.launch.arguments.output_files import check_output
from efface.launch.command import Command
from efface.notebook_tables import html_table
from efface.text import shown

if TYPE_CHECKING:
    from efface.eval.weight_change_values import WeightChange
    from efface.train.trainer.options import TrainingOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UnlearnOptions:
    """Erase one concept, or several, with one method; the result is a delta file."""

    method: Annotated[str, typer.Argument(help="A method of `efface methods`.")]
    concept: Annotated[
        list[str], typer.Option("--concept", "-c", help="What to forget; repeat it for several in one model.")
    ]
    base: BaseOption = "miniature"
    concepts: ConceptsOption = None
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings shipped for the method, or a YAML file; default: one named like the base, if there is one."
        ),
    ] = None
    config: Annotated[
        list[str],
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="A field of the method's config; repeatable."),
    ] = field(default_factory=list)
    seed: Annotated[int, typer.Option(help="Same seed, same delta.")] = 0
    after: Annotated[
        str | None,
        typer.Option(
            help="Continue from this delta, a file or hub id: what it erased stays erased, the concept is erased too.",
            **DELTA,
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The delta to write; default: METHOD-CONCEPT-JOB.safetensors.", **LOCAL),
    ] = None
    force: ForceOption = False
    device: DeviceOption = "auto"
    training: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=VALUE",
            help="How it is trained: deepspeed, attention, gradient_checkpointing … (docs/multi-gpu.md); repeatable.",
        ),
    ] = field(default_factory=list)
    torchrun_job: Annotated[
        Path | None,
        typer.Option(
            help="Train nothing: write the job to this file, for torchrun on several GPUs (docs/multi-gpu.md).", **LOCAL
        ),
    ] = None


@dataclass(frozen=True)
class Unlearned:
    """A delta that was trained.

    bytes: size of the file; seconds: of the training.
    """

    path: Path
    job_id: str
    method: str
    request: tuple[str, ...]
    previously_erased: tuple[str, ...]
    preset: str | None
    tensors: int
    bytes: int
    seconds: float
    weight_change: "WeightChange"

    def __repr__(self) -> str:
        """Short, without the weight change of each layer."""
        forgets = ", ".join((*self.previously_erased, *self.request))
        return (
            f"<Unlearned {forgets} by {self.method}: {self.path}, relative L2 {self.weight_change.all.relative_l2:.3e}>"
        )

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        change = self.weight_change.all
        rows = {
            "file": str(self.path),
            "method": self.method,
            "forgets": ", ".join((*self.previously_erased, *self.request)),
            "seconds": f"{self.seconds:.1f}",
            "changed tensors": f"{change.changed_tensors:.0f}",
            "relative L2 change": f"{change.relative_l2:.3e}",
        }
        return html_table(("", ""), rows.items())


@dataclass(frozen=True)
class TorchrunJobFile:
    """A job that was written to a file and not trained."""

    path: Path
    job_id: str


def run(options: UnlearnOptions) -> Unlearned | TorchrunJobFile:
    """Train the job and write its delta. With `after` it is the next request of a chain.

    Files that exist, and are not the results of this very job, are replaced only with `force`.
    With `torchrun_job` nothing is trained: the job is written to that file as a `TorchrunJob`, for
    `efface.train.torchrun`. Raises UserError, before anything is computed.
    """
    from efface.models.files.hub import find_delta
    from efface.train.job import is_result

    training_options = _training_options(options)
    after = find_delta(options.after) if options.after else None
    request = read_request(
        options.method,
        options.concept,
        base=options.base,
        concepts=options.concepts,
        preset=options.preset,
        config=parse_key_values(options.config),
        seed=options.seed,
        after=after,
    )
    inputs = {**request.inputs, "the DeepSpeed config": training_options.deepspeed}
    out = local_path(options.out or request.file_name)
    check_output(out, inputs=inputs, is_result=partial(is_result, job=request.job), force=options.force)
    for warning in request.warnings:
        logger.warning("%s", warning)
    if options.torchrun_job:
        return _write_torchrun_job(options.torchrun_job, options, request, training_options, out, inputs)
    return _train(options, request, training_options, out)


def show(result: Unlearned | TorchrunJobFile) -> None:
    if isinstance(result, TorchrunJobFile):
        print(f"{shown(str(result.path))}: job {result.job_id}, to be started with")
        path = shlex.quote(str(result.path))
        print(f"torchrun --nproc-per-node PROCESSES -m efface.train.torchrun {shown(path)}")
        return
    size = f"{result.tensors} tensors, {result.bytes / 1e6:.2f} MB, {result.seconds:.1f} s"
    print(f"{shown(str(result.path))}: {size}")
    summary = [f"job {result.job_id}", f"{result.method} on {', '.join(result.request)}"]
    if result.previously_erased:
        summary.append(f"after {', '.join(result.previously_erased)}")
    if result.preset:
        summary.append(f"preset {result.preset}")
    print(shown(", ".join(summary)))
    print(f"weight change: {_change_summary(result.weight_change)}")


COMMAND = Command("unlearn", UnlearnOptions, run, show)


def _training_options(options: UnlearnOptions) -> "TrainingOptions":
    from efface.config_files import find_config, parse
    from efface.train.trainer.options import TrainingOptions

    training_options = parse(TrainingOptions, parse_key_values(options.training, "--training"), "--training")
    if training_options.deepspeed:
        find_config("deepspeed", training_options.deepspeed)
    return training_options


def _train(options: UnlearnOptions, request: JobRequest, training_options: "TrainingOptions", out: Path) -> Unlearned:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from efface.eval.metrics.weight_change import weight_change
    from efface.launch.arguments.device import resolve_device
    from efface.launch.terminal.tables import console
    from efface.models.base import load_base
    from efface.models.fingerprint import cache_folder
    from efface.train.job import is_result
    from efface.train.run_job import run_job

    base = load_base(request.base, resolve_device(options.device))
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    terminal = console(sys.stderr)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        bar = progress.add_task(shown(f"{options.method}: {', '.join(request.new)}"), total=None, loss="-")

        def on_step(done: int, steps: int, loss: float) -> None:
            progress.update(bar, completed=done, total=steps, loss=f"{loss:.4f}")

        delta, metrics = run_job(
            request.job,
            base,
            request.concept_set,
            on_step,
            cache_folder(),
            parent=request.parent,
            training_options=training_options,
        )
    free = unless_taken(out, request.job.id, partial(is_result, job=request.job), options.force)
    if free != out:
        logger.warning("%s: was written by another command meanwhile; the delta is in %s", out, free)
    delta.save(free)
    assert metrics.seconds is not None, "a job that ran has measured it"
    return Unlearned(
        path=free,
        job_id=request.job.id,
        method=options.method,
        request=request.new,
        previously_erased=request.erased,
        preset=request.preset,
        tensors=len(delta.tensors),
        bytes=free.stat().st_size,
        seconds=metrics.seconds,
        weight_change=weight_change(base, delta),
    )


def _write_torchrun_job(
    file: Path,
    options: UnlearnOptions,
    request: JobRequest,
    training_options: "TrainingOptions",
    out: Path,
    inputs: Mapping[str, str | Path | None],
) -> TorchrunJobFile:
    from efface.models.files.hub import find_delta
    from efface.models.fingerprint import cache_folder
    from efface.train.torchrun import TorchrunJob, check_results, is_torchrun_job

    check_output(
        file,
        "--torchrun-job",
        inputs=inputs,
        is_result=partial(is_torchrun_job, job=request.job),
        force=options.force,
    )
    if file.absolute() in (out.absolute(), out.with_suffix(".json").absolute()):
        raise UserError(f"--torchrun-job {file}: is where the delta or its metrics go, should be another file")
    job = TorchrunJob(
        job=request.job,
        base=_absolute_if_path(options.base),
        concept_set=_absolute_if_path(request.concepts),
        out=out.absolute(),
        parent=find_delta(options.after).absolute() if options.after else None,
        cache=cache_folder(),
        checkpoint=out.absolute().with_name(f"{out.stem}-{request.job.id}.checkpoint"),
        training_options=training_options.model_copy(
            update={"deepspeed": training_options.deepspeed and _absolute_if_path(training_options.deepspeed)}
        ),
        force=options.force,
    )
    check_results(job)
    write_json(file, job.model_dump(mode="json"))
    return TorchrunJobFile(file, request.job.id)


def _absolute_if_path(name: str) -> str:
    """A name as it is, a path from the root."""
    path = local_path(name)
    return str(path.absolute()) if path.exists() else name


def _change_summary(change: "WeightChange") -> str:
    of_all, of_unet = change.all, change.unet
    return (
        f"relative L2 {of_all.relative_l2:.3e}, of the UNet alone {of_unet.relative_l2:.3e}; "
        f"L2 per parameter (challenge) {of_all.challenge:.3e}, of the UNet alone {of_unet.challenge:.3e}"
    )
