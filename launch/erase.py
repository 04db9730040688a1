"""`efface unlearn` and `efface export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from efface.errors import UserError
from efface.files import slug, write_json

if TYPE_CHECKING:
    from efface.concepts.concept import ConceptSet
    from efface.models.delta import Delta
    from efface.train.job import Job
    from efface.train.trainer.options import TrainingOptions


def unlearn(
    method: str,
    names: tuple[str, ...],
    base_name: str,
    concepts: str | None,
    preset: str | None,
    settings: list[str],
    seed: int,
    out: Path | None,
    device: str,
    after: Path | None = None,
    setup: Sequence[str] = (),
    work: Path | None = None,
) -> None:
    """One job in this process: the delta file, and what it changed. With `after`, the next request of a chain.

    With `work` nothing is trained: the job is written to that file as a `TorchrunJob`, for
    `efface.train.trainer.torchrun`.
    """
    from efface.concepts.concept import load_concept_set
    from efface.config_files import find_config, parse
    from efface.eval.metrics.weight_change import weight_change
    from efface.launch.device import resolve_device
    from efface.models.base import base_id, load_base, read_base
    from efface.models.delta import Delta
    from efface.models.fingerprint import cache_folder
    from efface.train.job import make_job
    from efface.train.method import preset_names
    from efface.train.run_job import run_job
    from efface.train.trainer.options import TrainingOptions

    training_options = parse(TrainingOptions, parse_key_values(setup, "--setup"), "--setup")
    if training_options.deepspeed:
        find_config("deepspeed", training_options.deepspeed)
    spec = read_base(base_name)
    concept_set = load_concept_set(concepts or spec.concepts or _no_concepts(base_name))
    if preset is None and spec.name in preset_names(method):
        preset = spec.name
    parent = Delta.load(after) if after else None
    erased = _previously_erased(parent, str(after), concept_set, names) if parent else ()
    job = make_job(
        spec.name,
        base_id(spec),
        method,
        concept_set,
        [*erased, *names],
        config=parse_key_values(settings),
        preset=preset,
        strategy="continual" if parent else "single" if len(names) == 1 else "multi",
        seed=seed,
        parent=parent.provenance["job_id"] if parent else None,
    )
    request = job.concepts[len(erased) :]
    path = out or Path(_file_name(method, request, parent))
    check_writable(path)
    if after and path.exists() and path.samefile(after):
        raise UserError(f"--out {path}: is the delta given by --after, should be another file")
    if work:
        _write_work(work, job, base_name, concepts or spec.concepts or "", path, after, training_options)
        return

    console = Console(stderr=True)
    base = load_base(spec, resolve_device(device))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task(f"{method}: {', '.join(request)}", total=None, loss="-")

        def on_step(done: int, steps: int, loss: float) -> None:
            progress.update(bar, completed=done, total=steps, loss=f"{loss:.4f}")

        delta, metrics = run_job(
            job, base, concept_set, on_step, cache_folder(), parent=parent, training_options=training_options
        )
    delta.save(path)
    change = weight_change(base, delta)
    print(f"{path}: {len(delta.tensors)} tensors, {path.stat().st_size / 1e6:.2f} MB, {metrics['seconds']:.1f} s")
    summary = [f"{method} on {', '.join(request)}", *([f"after {', '.join(erased)}"] if erased else [])]
    print(", ".join([f"job {job.id}", *summary, *([f"preset {preset}"] if preset else [])]))
    print(f"weight change: {_change_summary(change)}")


def _write_work(
    file: Path, job: "Job", base: str, concepts: str, out: Path, after: Path | None, training_options: "TrainingOptions"
) -> None:
    from efface.models.fingerprint import cache_folder
    from efface.train.trainer.torchrun import TorchrunJob

    check_writable(file, "--work")
    if out.with_suffix(".json").absolute() == file.absolute():
        raise UserError(f"--work {file}: is where the metrics of {out} go, should be another file")
    work = TorchrunJob(
        job=job,
        base=_absolute_if_path(base),
        concept_set=_absolute_if_path(concepts),
        out=out.absolute(),
        parent=after.absolute() if after else None,
        cache=cache_folder(),
        checkpoint=out.absolute().with_suffix(".checkpoint"),
        training_options=training_options.model_copy(
            update={"deepspeed": training_options.deepspeed and _absolute_if_path(training_options.deepspeed)}
        ),
    )
    write_json(file, work.model_dump(mode="json"))
    print(f"{file}: job {job.id}, to be started with")
    print(f"torchrun --nproc-per-node PROCESSES -m efface.train.trainer.torchrun {file}")


def _absolute_if_path(name: str) -> str:
    """A name as it is, a path from the root."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _previously_erased(
    parent: "Delta", path: str, concept_set: "ConceptSet", names: tuple[str, ...]
) -> tuple[str, ...]:
    """What the chain has erased so far, by `parent`. Raises UserError where `names` is no request to go on with."""
    if "job_id" not in parent.provenance:
        raise UserError(f"--after {path}: tells of no job, so it is not known what it erased")
    if len(names) != 1:
        raise UserError(f"--after takes one request at a time: give one --concept, not {', '.join(names)}")
    erased = tuple(parent.provenance["job"]["concepts"])
    requested = concept_set.find(names[0]).name
    if requested in erased:
        raise UserError(f"--after {path}: has erased '{requested}' already, with {', '.join(erased)}")
    return erased


def _file_name(method: str, request: tuple[str, ...], parent: "Delta | None") -> str:
    """`esd-dog.safetensors`; of a chain also which delta it comes after, so that none overwrites another."""
    return slug(" ".join((method, *request))) + (f"-after-{parent.id[:8]}" if parent else "") + ".safetensors"


def export(delta_path: Path, folder: Path, base_name: str) -> None:
    """Base and delta as one diffusers folder."""
    from efface.models.base import load_base
    from efface.models.delta import Delta
    from efface.models.export import export as write

    delta = Delta.load(delta_path)
    write(load_base(base_name), delta, folder)
    print(f"{folder}: load it with diffusers.DiffusionPipeline.from_pretrained")


def parse_key_values(settings: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """`["eta=2", "variant=u"]` as a dict, values read as YAML. Raises UserError for one without '='."""
    import yaml

    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"{option} '{setting}' should be KEY=VALUE")
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"{option} '{setting}': the value is not valid YAML") from None
    return pairs


def _no_concepts(base: str) -> str:
    raise UserError(
        f"base '{base}' names no concept set, so --concepts must: a name of `efface concepts` or a YAML file"
    )


def check_writable(path: Path, option: str = "--out") -> None:
    """Before minutes of work, not after."""
    import os

    try:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder, should be a file")
        parent = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror})") from None
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written, {parent} is not a writable folder")


def _change_summary(change: dict[str, Any]) -> str:
    of_all, of_unet = change["all"], change["unet"]
    return (
        f"relative L2 {of_all['relative_l2']:.3e}, of the UNet alone {of_unet['relative_l2']:.3e}; "
        f"L2 per parameter (challenge) {of_all['challenge']:.3e}, of the UNet alone {of_unet['challenge']:.3e}"
    )
