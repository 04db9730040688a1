"""Make a package of a run: models, self-report, logs, environment, and hashes of all of it.

The folder appears whole or not at all.
"""

import io
import shlex
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import torch

from efface import __version__
from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import DeltaEvaluation
from efface.cluster.package.card import TEMPLATES, Judgement, front_matter, judgement, templates
from efface.cluster.package.commands import unlearn_command
from efface.cluster.package.description import DESCRIPTION, MANIFEST, Description, PackagedModel, Sample
from efface.cluster.package.environment import environment, source_of_efface
from efface.cluster.package.files_inside import files_inside
from efface.cluster.run_content import read_run
from efface.cluster.run_provenance import evaluate_command, until_of
from efface.cluster.storage.journal import journal_files
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.model import BASE, Model
from efface.cluster.tasks.training import TrainingResult
from efface.cluster.unfinished_run import not_finished
from efface.concepts.shipped import data_names
from efface.config_files import list_configs, read_config, read_yaml, to_yaml
from efface.errors import UserError
from efface.eval.judging.image_table import write_table
from efface.eval.report.reported_run import RunContent
from efface.eval.report.write import scores_csv, scores_markdown, write_report
from efface.files import file_stem, local_path, open_to_readers, sha256_file, write_json
from efface.models.base import load_base
from efface.models.delta import Delta
from efface.models.export import check_new_folder, export
from efface.text import count_of, csv_cell

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


OnProgress = Callable[[str, int, int], None]
"""Called with (what, done, total): 'models', 3, 80."""


def build_package(
    plan: Plan,
    folder: RunFolder,
    out: Path,
    *,
    method: str | None,
    dtypes: Sequence[str],
    licence: str,
    on_progress: OnProgress = lambda *_: None,
) -> Description:
    """Write the models of one method of a run, and all that belongs to them, to the new folder `out`.

    method: its label; None where the run has one. dtypes: of the full diffusers folders, of `DTYPES`. Raises UserError
    where `out` is taken, the run has no finished model of the method, it has several methods and none is named, or the
    method's models have no weights of their own to write as `dtypes`.
    """
    check_new_folder(out)
    content = read_run(folder.root)
    models = _models(plan, folder, content, method)
    label = models[0].label
    is_hook = any(folder.read_delta(model).kind == "hook" for model in models)
    if is_hook and dtypes:
        raise UserError(
            f"method '{label}' acts while an image is made and changes no weight, so it has no folders of weights: "
            "give --weights none"
        )
    unfinished = out.parent / f".{out.name[:60]}.{uuid.uuid4().hex[:8]}"
    unfinished.mkdir(parents=True)
    try:
        description = Description(
            campaign=plan.name,
            efface=__version__,
            efface_source=source_of_efface(),
            base=plan.base.name,
            base_id=plan.base_id,
            recipe=plan.recipe,
            judge=content.judge,
            licence=licence,
            problems=content.problems,
            models=tuple(_write_models(plan, folder, content, models, unfinished, dtypes, on_progress)),
        )
        _write_results(plan, folder, content, label, unfinished)
        ids = [model.id for model in models]
        judged = judgement(content, label, ids)
        _write_readme(plan, folder, description, content, label, ids, judged, dtypes, is_hook, unfinished)
        write_json(unfinished / DESCRIPTION, description.model_dump(mode="json"))
        if not is_hook:
            shutil.copyfile(TEMPLATES / "load_delta.py", unfinished / "load_delta.py")
        write_json(unfinished / MANIFEST, manifest(unfinished, on_progress))
        open_to_readers(unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return description


def manifest(root: Path, on_progress: OnProgress = lambda *_: None) -> dict[str, str]:
    """SHA-256 of every file below `root` but the manifest, by its path there. Raises as `files_inside` does."""
    files = {name: path for name, path in files_inside(root).items() if name != MANIFEST}
    hashes = {}
    on_progress("files hashed", 0, len(files))
    for number, (name, path) in enumerate(files.items(), 1):
        hashes[name] = sha256_file(path)
        on_progress("files hashed", number, len(files))
    return hashes


def _models(plan: Plan, folder: RunFolder, content: RunContent, method: str | None) -> list[Model]:
    """The models of one line of the leaderboard, in the order of the campaign."""
    labels = list(dict.fromkeys(row.method for row in content.rows if row.method in content.scores.keys() - {BASE}))
    if not labels:
        raise not_finished(folder, plan)
    if method is None and len(labels) > 1:
        raise UserError(f"the run has several methods ({', '.join(labels)}); say which with --method")
    if method is not None and method not in labels:
        raise UserError(f"--method {method}: is no scored method of the run, which has {', '.join(labels)}")
    label = method or labels[0]
    judged = set(content.table["model_id"].to_pylist())
    models = [model for model in plan.jobs if model.label == label and model.id in judged]
    if not models:
        raise UserError(
            f"{folder.root}: this efface plans another model of '{label}' than the one that was judged here"
        )
    recorded = folder.records([task for task in plan.trainings if task.model in models])
    lost = next((model for model in models if model.id not in recorded), None)
    if lost:
        raise UserError(
            f"{folder.job(lost)}: the record of how it was made is gone or damaged, so it cannot be packaged"
        )
    return models


def _write_models(
    plan: Plan,
    folder: RunFolder,
    content: RunContent,
    models: Sequence[Model],
    root: Path,
    dtypes: Sequence[str],
    on_progress: OnProgress,
) -> Iterator[PackagedModel]:
    base = load_base(plan.base) if dtypes else None
    records = folder.records([task for task in plan.trainings if task.model in models])
    samples = _samples(content, models)
    images = dict(
        pair for pair in content.images() if pair[0] in {sample["image_sha256"] for sample in samples.values()}
    )
    names = _names(models)
    on_progress("models", 0, len(models))
    for number, model in enumerate(models, 1):
        delta = folder.read_delta(model)
        trained = TrainingResult.model_validate(records[model.id].facts)
        name = names[model.id]
        delta_file = root / "deltas" / f"{name}.safetensors"
        delta_file.parent.mkdir(exist_ok=True)
        delta.save(delta_file)
        folders = {dtype: f"models/{dtype}/{name}" for dtype in dtypes}
        for dtype, path in folders.items():
            assert base is not None
            _export(base, delta, root / path, dtype)
        found = samples.get(model.id)
        sample = None
        if found and found["image_sha256"] in images:
            sample = Sample(**found, file=f"samples/{name}.png")
            (root / "samples").mkdir(exist_ok=True)
            (root / sample.file).write_bytes(images[found["image_sha256"]])
        on_progress("models", number, len(models))
        assert model.job
        yield PackagedModel(
            name=name,
            method=model.label,
            concepts=model.job.concepts,
            delta=f"deltas/{name}.safetensors",
            folders=folders,
            job=trained.job,
            seconds=trained.metrics.seconds,
            device=records[model.id].device,
            sample=sample,
        )


def _export(base: Any, delta: Delta, folder: Path, dtype: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    export(base, delta, folder, DTYPES[dtype])


def _names(models: Sequence[Model]) -> dict[str, str]:
    """A file name of each model: its concept, or all of them, and its seed where there are several."""
    stems = {
        model.id: file_stem(" ".join(model.job.concepts))
        if len(model.job.concepts) <= 3
        else f"{len(model.job.concepts)}-concepts"
        for model in models
        if model.job
    }
    counts = Counter(stems.values())
    return {id: stem if counts[stem] == 1 else f"{stem}-{id}" for id, stem in stems.items()}


def _samples(content: RunContent, models: Sequence[Model]) -> dict[str, dict[str, Any]]:
    """By model, the first image of the axis forget: prompt, seed and hash."""
    table = content.table.filter(pc.equal(content.table["judge"], content.judge))
    table = table.filter(pc.and_(pc.equal(table["axis"], "forget"), pc.is_null(table["image_error"])))
    table = table.sort_by([("prompt", "ascending"), ("seed", "ascending")])
    found: dict[str, dict[str, Any]] = {}
    for row in table.select(["model_id", "prompt", "seed", "image_sha256"]).to_pylist():
        found.setdefault(row.pop("model_id"), row)
    return {model.id: found[model.id] for model in models if model.id in found}


def _write_results(plan: Plan, folder: RunFolder, content: RunContent, label: str, root: Path) -> None:
    evaluation = root / "evaluation"
    evaluation.mkdir()
    wanted = pc.is_in(content.table["method"], pa.array([label, "base"]))
    table = content.table.filter(wanted)
    write_table(evaluation / "table.parquet", table)
    (evaluation / "table.csv").write_bytes(_csv(table))
    prompts = table.select(["concept", "axis", "asked_concept", "prompt", "seed"])
    distinct = (
        prompts.group_by(prompts.column_names).aggregate([]).sort_by([(n, "ascending") for n in prompts.column_names])
    )
    (evaluation / "prompts.csv").write_bytes(_csv(distinct))
    (evaluation / "recipe.yaml").write_text(to_yaml(plan.recipe.model_dump(mode="json")), encoding="utf-8")
    (evaluation / "concepts.yaml").write_text(to_yaml(plan.concept_set.model_dump(mode="json")), encoding="utf-8")
    for calibration in content.calibrations:
        calibration.save(evaluation / f"calibration-{file_stem(calibration.judge)}.json")
    for log in journal_files(folder):
        (evaluation / log.name).write_bytes(log.read_bytes())
    requested = _requested(folder)
    (root / requested.name).write_text(to_yaml(_with_own_files(read_yaml(requested), root)), encoding="utf-8")
    (root / "scores.csv").write_text(scores_csv([_only(content, label)]), encoding="utf-8")
    write_report([_only(content, label)], root / "report.html")
    for extra in ("report.csv", "report.md"):
        (root / extra).unlink()
    (root / "environment.txt").write_text("\n".join(environment()) + "\n", encoding="utf-8")


def _requested(folder: RunFolder) -> Path:
    """What was requested: a campaign, or deltas to be judged."""
    return folder.campaign if folder.campaign.is_file() else folder.evaluation


def _commands(folder: RunFolder, models: Sequence[PackagedModel], root: Path) -> tuple[list[str], list[str]]:
    """What makes models and run again in the package's folder, and the models of which that is not known."""
    requested = _requested(folder)
    if requested == folder.campaign:
        return [shlex.join(["efface", "run", requested.name, "--out", "runs/again"])], []
    evaluation = read_config(DeltaEvaluation, root / requested.name)
    made = {model.name: unlearn_command(model.job, evaluation, model.delta) for model in models}
    judged = evaluate_command(evaluation, "deltas/*.safetensors", "runs/again", until_of(folder))
    return [*filter(None, made.values()), judged], [name for name, command in made.items() if command is None]


def _hardware(plan: Plan, folder: RunFolder, models: Sequence[PackagedModel], ids: Sequence[str]) -> list[str]:
    """On what the models were trained and judged, and how long that took. ids: of the models in the plan."""
    devices = Counter(model.device for model in models)
    lines = [f"{count_of(count, 'model')} trained on {device}" for device, count in devices.items() if device]
    known = [model.seconds for model in models if model.seconds is not None]
    if known:
        lines.append(f"training: {sum(known):.1f} s in all, {sum(known) / len(known):.1f} s a model")
    if devices[None]:
        count = count_of(devices[None], "model")
        lines.append(f"{count} trained before this run, which was given the delta: neither device nor time is known")
    shards = [shard for model in plan.models if model.id in ids or not model.job for shard in plan.shards[model.id]]
    records = folder.records(shards).values()
    seconds = sum(record.seconds or 0.0 for record in records)
    where = ", ".join(sorted({record.device for record in records if record.device}))
    if where:
        images = count_of(sum(shard.size for shard in shards), "image")
        lines.append(
            f"{images} made and judged on {where}, those of the base among them: {seconds:.0f} s of its workers"
        )
    return lines


def _title(plan: Plan, folder: RunFolder, models: Sequence[PackagedModel], label: str) -> str:
    """The campaign's name; of deltas that were judged by themselves what they are."""
    if _requested(folder) == folder.campaign:
        return plan.name
    concepts = list(dict.fromkeys(concept for model in models for concept in model.concepts))
    return f"{label}: {', '.join(concepts) if len(concepts) <= 3 else count_of(len(concepts), 'concept')}"


def _with_own_files(requested: dict[str, Any], root: Path) -> dict[str, Any]:
    """What was requested, with recipe, concepts and prompts from files of the package where they did not ship with
    efface: it can be run in the package's folder, on another machine too."""
    evaluation = dict(requested.get("evaluation") or {})
    if evaluation.get("recipe") and evaluation["recipe"] not in list_configs("recipes"):
        evaluation["recipe"] = "evaluation/recipe.yaml"
    prompts = evaluation.get("prompts")
    if prompts and prompts not in data_names(".csv"):
        evaluation["prompts"] = "evaluation/prompt-set.csv"
        shutil.copyfile(local_path(prompts), root / evaluation["prompts"])
    concepts = requested.get("concepts")
    named = concepts.get("set") if isinstance(concepts, dict) else concepts
    if named and named not in data_names(".yaml"):
        own = "evaluation/concepts.yaml"
        requested = {**requested, "concepts": {**concepts, "set": own} if isinstance(concepts, dict) else own}
    return {**requested, "evaluation": evaluation}


def _only(content: RunContent, label: str) -> RunContent:
    """The run as if it had but one method, beside the base."""
    return replace(
        content,
        rows=tuple(row for row in content.rows if row.method in (label, "base")),
        scores={label: content.scores[label]},
        stages={name: stages for name, stages in content.stages.items() if name == label},
        models=tuple(model for model in content.models if model.label == label),
        attacks=tuple(result for result in content.attacks if result.method == label),
        transfers=tuple(row for row in content.transfers if label in (row.source, row.method)),
        table=content.table.filter(pc.is_in(content.table["method"], pa.array([label, "base"]))),
    )


def _csv(table: pa.Table) -> bytes:
    """With no cell that a spreadsheet would run."""
    columns = [
        pa.array([csv_cell(value) for value in column.to_pylist()]) if pa.types.is_string(column.type) else column
        for column in table.columns
    ]
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns, names=table.column_names), buffer)
    return buffer.getvalue()


def _write_readme(
    plan: Plan,
    folder: RunFolder,
    description: Description,
    content: RunContent,
    label: str,
    ids: Sequence[str],
    judged: Judgement | None,
    dtypes: Sequence[str],
    is_hook: bool,
    root: Path,
) -> None:
    title = _title(plan, folder, description.models, label)
    again, unknown = _commands(folder, description.models, root)
    only = _only(content, label)
    leaderboard = scores_markdown([only]).partition("\n| ")[2]
    text = (
        templates()
        .get_template("README.md.j2")
        .render(
            **description.model_dump(),
            title=title,
            front_matter=front_matter(title, plan.base, label, judged, licence=description.licence, is_whole=False),
            judged=judged,
            change=next((row for row in content.rows if row.method == label and row.challenge_all is not None), None),
            leaderboard=f"| {leaderboard}",
            requested=_requested(folder).name,
            again=again,
            made_elsewhere=unknown,
            dtypes=dtypes,
            is_hook=is_hook,
            hardware=_hardware(plan, folder, description.models, ids),
        )
    )
    (root / "README.md").write_text(text, encoding="utf-8")
