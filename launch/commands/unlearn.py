"""`efface unlearn`: one job in this process, or written to a file for torchrun."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import UserError
from efface.files import local_path, slug, write_json
from efface.launch.command import Command
from efface.launch.key_values import parse_key_values
from efface.launch.options import LOCAL, BaseOption, ConceptsOption, DeviceOption, ForceOption
from efface.launch.output_files import check_output
from efface.text import shown

if TYPE_CHECKING:
    from efface.concepts.concept import ConceptSet
    from efface.models.base import BaseSpec
    from efface.models.delta import Delta
    from efface.train.job import Job
    from efface.train.trainer.options import TrainingOptions


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
        Path | None,
        typer.Option(
            help="Continue from this delta: what it erased stays erased, and the concept is erased too.", **LOCAL
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

    bytes: size of the file; seconds: of the training; weight_change: as `weight_change` measures it.
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
    weight_change: dict[str, Any]


@dataclass(frozen=True)
class TorchrunJobFile:
    """A job that was written to a file and not trained."""

    path: Path
    job_id: str


@dataclass(frozen=True)
class _Request:
    """What the options come to: a job, and all that is needed to train it."""

    job: "Job"
    base: "BaseSpec"
    concept_set: "ConceptSet"
    concepts: str
    preset: str | None
    parent: "Delta | None"
    erased: tuple[str, ...]
    training_options: "TrainingOptions"
    out: Path
    inputs: dict[str, str | Path | None]

    @property
    def new(self) -> tuple[str, ...]:
        """The concepts that this job adds to those erased before."""
        return self.job.concepts[len(self.erased) :]


def run(options: UnlearnOptions) -> Unlearned | TorchrunJobFile:
    """Train the job and write its delta. With `after` it is the next request of a chain.

    Files that exist, and are not the results of this very job, are replaced only with `force`.
    With `torchrun_job` nothing is trained: the job is written to that file as a `TorchrunJob`, for
    `efface.train.torchrun`. Raises UserError, before anything is computed.
    """
    request = _read(options)
    return _write_torchrun_job(options, request) if options.torchrun_job else _train(options, request)


def show(result: Unlearned | TorchrunJobFile) -> None:
    if isinstance(result, TorchrunJobFile):
        import shlex

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


def _read(options: UnlearnOptions) -> _Request:
    from efface.concepts.concept import load_concept_set
    from efface.config_files import find_config, parse
    from efface.models.base import base_id, read_base
    from efface.models.delta import Delta
    from efface.train.job import is_result, make_job
    from efface.train.method import preset_names
    from efface.train.trainer.options import TrainingOptions

    training_options = parse(TrainingOptions, parse_key_values(options.training, "--training"), "--training")
    if training_options.deepspeed:
        find_config("deepspeed", training_options.deepspeed)
    names = tuple(options.concept)
    base = read_base(options.base)
    concepts = options.concepts or base.concepts or _no_concepts(options.base)
    concept_set = load_concept_set(concepts)
    preset = options.preset
    if preset is None and base.name in preset_names(options.method):
        preset = base.name
    parent = Delta.load(options.after) if options.after else None
    erased = _previously_erased(parent, str(options.after), concept_set, names) if parent else ()
    job = make_job(
        base.name,
        base_id(base),
        options.method,
        concept_set,
        [*erased, *names],
        config=parse_key_values(options.config),
        preset=preset,
        strategy="continual" if parent else "single" if len(names) == 1 else "multi",
        seed=options.seed,
        parent=parent.provenance["job_id"] if parent else None,
    )
    out = options.out or Path(_file_name(options.method, job.concepts[len(erased) :], job.id))
    inputs: dict[str, str | Path | None] = {
        "the delta given by --after": options.after,
        "the base": base.source,
        "the base's YAML": options.base,
        "the concept set": concepts,
        "the preset": preset,
        "the DeepSpeed config": training_options.deepspeed,
    }
    check_output(out, inputs=inputs, is_result=lambda path: is_result(path, job), force=options.force)
    return _Request(job, base, concept_set, concepts, preset, parent, erased, training_options, out, inputs)


def _train(options: UnlearnOptions, request: _Request) -> Unlearned:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from efface.eval.metrics.weight_change import weight_change
    from efface.launch.device import resolve_device
    from efface.launch.tables import console
    from efface.models.base import load_base
    from efface.models.fingerprint import cache_folder
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
            training_options=request.training_options,
        )
    delta.save(request.out)
    return Unlearned(
        path=request.out,
        job_id=request.job.id,
        method=options.method,
        request=request.new,
        previously_erased=request.erased,
        preset=request.preset,
        tensors=len(delta.tensors),
        bytes=request.out.stat().st_size,
        seconds=metrics["seconds"],
        weight_change=weight_change(base, delta),
    )


def _write_torchrun_job(options: UnlearnOptions, request: _Request) -> TorchrunJobFile:
    from efface.models.fingerprint import cache_folder
    from efface.train.torchrun import TorchrunJob, check_results, is_torchrun_job

    assert options.torchrun_job
    file, out, training_options = options.torchrun_job, request.out, request.training_options
    check_output(
        file,
        "--torchrun-job",
        inputs=request.inputs,
        is_result=lambda path: is_torchrun_job(path, request.job),
        force=options.force,
    )
    if out.with_suffix(".json").absolute() == file.absolute():
        raise UserError(f"--torchrun-job {file}: is where the metrics of {out} go, should be another file")
    job = TorchrunJob(
        job=request.job,
        base=_absolute_if_path(options.base),
        concept_set=_absolute_if_path(request.concepts),
        out=out.absolute(),
        parent=options.after.absolute() if options.after else None,
        cache=cache_folder(),
        checkpoint=out.absolute().with_suffix(".checkpoint"),
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


def _previously_erased(
    parent: "Delta", path: str, concept_set: "ConceptSet", names: tuple[str, ...]
) -> tuple[str, ...]:
    """What the chain has erased so far, by `parent`. Raises UserError where `names` is no request to continue with."""
    try:
        erased = tuple(map(str, parent.provenance["job"]["concepts"]))
        parent.provenance["job_id"]
    except (KeyError, TypeError):
        raise UserError(f"--after {path}: does not say which job made it, so what it erased is not known") from None
    if len(names) != 1:
        raise UserError(f"--after takes one request at a time: give one --concept, not {', '.join(names)}")
    requested = concept_set.find(names[0]).name
    if requested in erased:
        raise UserError(f"--after {path}: has erased '{requested}' already, with {', '.join(erased)}")
    return erased


def _file_name(method: str, request: tuple[str, ...], job_id: str) -> str:
    """`esd-dog-0123456789abcdef.safetensors`: no two jobs share it, whatever their concepts are called."""
    return f"{slug(' '.join((method, *request)))}-{job_id}.safetensors"


def _no_concepts(base: str) -> str:
    raise UserError(
        f"base '{base}' names no concept set, so --concepts must: a name of `efface concepts` or a YAML file"
    )


def _change_summary(change: dict[str, Any]) -> str:
    of_all, of_unet = change["all"], change["unet"]
    return (
        f"relative L2 {of_all['relative_l2']:.3e}, of the UNet alone {of_unet['relative_l2']:.3e}; "
        f"L2 per parameter (challenge) {of_all['challenge']:.3e}, of the UNet alone {of_unet['challenge']:.3e}"
    )
