"""What a run folder holds, for a report: read from its records and files alone, changing nothing.

Every verdict is checked against its record. A damaged file is named, and the model that it speaks of is left out. Where
the base is at hand what was requested is planned again, which tells what is missing; else what is there is shown.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import Campaign, DeltaEvaluation, Evaluation
from efface.cluster.method_scores import (
    chains_of,
    image_costs,
    of_last_stages,
    score_methods,
    scored_stages,
    total_seconds,
)
from efface.cluster.run_provenance import provenance
from efface.cluster.run_summary import summarize
from efface.cluster.storage.opening import check_format
from efface.cluster.storage.records import Record, parse_failure, parse_record, read_json
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.stored_plan import is_campaign, stored_plan
from efface.cluster.stored_tasks import StoredTask, stored_tasks, subfolders
from efface.cluster.stored_verdicts import stored_verdicts
from efface.cluster.tasks.attack import ATTACK, TRANSFER, AttackTask, TransferTask
from efface.cluster.tasks.calibration import CALIBRATION
from efface.cluster.tasks.control import ControlTask, compared_with_controls
from efface.cluster.tasks.judging import IMAGES
from efface.cluster.tasks.model import BASE
from efface.cluster.tasks.training import TrainingResult
from efface.config_files import parse, read_config
from efface.errors import UserError
from efface.eval.attacking.attack_result import AttackResult
from efface.eval.attacking.attack_transfer import Transferred, Transfers
from efface.eval.calibration.calibration import Calibration, read_calibration
from efface.eval.judging.image_errors import broken_images, counted
from efface.eval.judging.image_table import read_images
from efface.eval.published_scores import published_for
from efface.eval.report.reported_run import ReportedModel, RunContent
from efface.eval.scores.leaderboard import leaderboard, notes
from efface.eval.weight_change_values import WeightChange, mean_weight_change
from efface.models.sampling.sampler import SamplingCost
from efface.train.job import Job


def read_run(root: Path, *, with_images: bool = True) -> RunContent:
    """The run in a folder, as far as it is done. Raises UserError where it holds no run.

    with_images: whether the images are read too, which are most of its bytes; without them there are none to show.
    """
    folder = RunFolder(root)
    if not check_format(folder):
        raise UserError(f"{root}: is not a run folder, it holds no {folder.sign.name}")
    problems: list[str] = []
    shards = {path.name: stored_tasks(path) for path in subfolders(folder.root / "evaluations")}
    plan = _plan(folder, {shard.record.id for stored in shards.values() for shard in stored}, problems)
    table = stored_verdicts(folder, plan, shards, problems)
    problems.extend(_failures(folder))
    models, changes, seconds = _trained(folder, table, problems)
    calibrations = _calibrations(folder, problems)
    attacks, transfers = _attacks(folder, problems)
    judge = _headline(folder, table, problems)
    of_judge = table.filter(pc.equal(table["judge"], judge))
    labels = [label for label in dict.fromkeys(of_judge["method"].to_pylist()) if label != BASE]
    scores, unscored = score_methods(of_judge, labels)
    problems.extend(f"not scored: {reason}" for reason in unscored)
    chains = chains_of(plan) if plan else {}
    last = of_last_stages(chains, scores)
    rows = leaderboard(last, changes, seconds, image_costs(_sampling(table, shards)))
    image_files = list(_intact_images(shards, problems)) if with_images else []
    broken = broken_images(of_judge)
    if broken:
        problems.append(f"images that are no evidence, and count for nothing: {counted(broken)}")
    return RunContent(
        name=plan.name if plan and is_campaign(folder) else root.name,
        path=root.name,
        table=table,
        judge=judge,
        rows=tuple(rows),
        notes=tuple(notes(last, rows)),
        scores=scores,
        stages=scored_stages(chains, scores),
        models=tuple(models),
        calibrations=tuple(calibrations),
        images=lambda: _images(image_files),
        attacks=tuple(attacks),
        transfers=tuple(transfers),
        controls=tuple(compared_with_controls(plan, folder)) if plan else (),
        problems=tuple(problems),
        published=tuple(published_for(dict.fromkeys(table["concept"].to_pylist()))),
        provenance=provenance(folder, table, calibrations),
    )


def _plan(folder: RunFolder, judged: Set[str], problems: list[str]) -> Plan | None:
    """The plan of what was requested, with what is missing of it among the problems; None where it cannot be made, or
    is another than that by which everything here was `judged` (ids of shards)."""
    try:
        plan = stored_plan(folder, fetch=False)
    except UserError as error:
        problems.append(f"what was requested cannot be planned here, so it is not known what is missing: {error}")
        return None
    if plan.provisional:
        problems.append("the base is not on this machine, so it is not known what is missing")
        return None
    if judged and judged.isdisjoint(shard.id for shards in plan.shards.values() for shard in shards):
        problems.append(
            "this efface plans the request otherwise than the one that judged here (its prompts, say, have changed "
            "since), so it is not known what is missing"
        )
        return None
    summary = summarize(plan, folder)
    for kind, tasks in summary.tasks.items():
        if tasks.left or tasks.failed:
            failed = f", {tasks.failed} were given up" if tasks.failed else ""
            problems.append(
                f"{kind}: {tasks.done} of {tasks.all} {tasks.unit}s are done, {tasks.left} are left{failed}"
            )
    problems.extend(plan.warnings)
    return plan


def _failures(folder: RunFolder) -> Iterator[str]:
    for path in subfolders(folder.root / "jobs"):
        failure = parse_failure(read_json(path, "failure.json"))
        if failure:
            yield f"{path.name} was given up ({failure.stage}): {failure.reason}"


def _headline(folder: RunFolder, table: pa.Table, problems: list[str]) -> str:
    """The judge that the run names first, of those that judged; its file need not be at hand."""
    judges = sorted(table["judge"].unique().to_pylist())
    if len(judges) > 1:  # then the run names them; one alone may be the base's own
        try:
            first = _evaluation(folder).judges[0]
            return next(judge for judge in judges if judge in (first, Path(first).stem))
        except (UserError, IndexError, StopIteration):
            problems.append(f"it is not known which judge the run goes by; scores here are by '{judges[0]}'")
    return judges[0] if judges else ""


def _evaluation(folder: RunFolder) -> Evaluation:
    """How the run judges. Raises UserError where its file cannot be read."""
    if is_campaign(folder):
        return read_config(Campaign, folder.campaign).evaluation
    return read_config(DeltaEvaluation, folder.evaluation).evaluation


def _trained(
    folder: RunFolder, table: pa.Table, problems: list[str]
) -> tuple[list[ReportedModel], dict[str, WeightChange], dict[str, float]]:
    """The models that were made; of each method all of whose models are in the table, weight change and seconds."""
    judged = set(table["model_id"].to_pylist())
    models: list[ReportedModel] = []
    by_label: dict[str, list[TrainingResult]] = {}
    for path in subfolders(folder.root / "jobs"):
        record = parse_record(read_json(path, "record.json"))
        if record is None:
            continue
        try:
            trained = parse(TrainingResult, record.facts, str(path / "record.json"))
            job = parse(Job, trained.job, str(path / "record.json"))
        except UserError as error:
            problems.append(f"how {path.name} was made is not known: {error}")
            continue
        models.append(_reported(path.name, trained, job, record))
        if record.id in judged:
            by_label.setdefault(trained.label, []).append(trained)
    changes = {label: mean_weight_change([t.weight_change for t in found]) for label, found in by_label.items()}
    known = {label: total_seconds(found) for label, found in by_label.items()}
    return models, changes, {label: seconds for label, seconds in known.items() if seconds is not None}


def _reported(name: str, trained: TrainingResult, job: Job, record: Record) -> ReportedModel:
    return ReportedModel(
        id=record.id,
        label=trained.label,
        method=job.method,
        name=name,
        concepts=job.concepts,
        seed=job.seed,
        config=job.config,
        seconds=trained.metrics.seconds,
        device=record.device,
        losses=tuple(trained.metrics.losses),
        changes={group: norms.relative_l2 for group, norms in trained.weight_change.groups.items()},
        layers=trained.weight_change.layers,
    )


def _calibrations(folder: RunFolder, problems: list[str]) -> list[Calibration]:
    found = []
    for stored in stored_tasks(folder.root / "calibration"):
        path = stored.intact(CALIBRATION)
        if path:
            found.append(read_calibration(path))
        else:
            problems.append(f"{stored.folder / stored.stem}: the calibration is not as it was written")
    return found


def _attacks(folder: RunFolder, problems: list[str]) -> tuple[list[AttackResult], list[Transferred]]:
    """What attacks came to, and what they found does on other models."""
    kinds = AttackTask.kind, ControlTask.kind
    attacks = [read_config(AttackResult, path) for kind in kinds for path in _outputs(folder, kind, ATTACK, problems)]
    transfers = [read_config(Transfers, path) for path in _outputs(folder, TransferTask.kind, TRANSFER, problems)]
    return attacks, [row for transfer in transfers for row in transfer.rows]


def _outputs(folder: RunFolder, kind: str, name: str, problems: list[str]) -> Iterator[Path]:
    """The files called `name` of all finished tasks of a kind, but those that are damaged, which are named."""
    for stored in (stored for path in subfolders(folder.root / kind) for stored in stored_tasks(path)):
        path = stored.intact(name)
        if path:
            yield path
        else:
            problems.append(f"{stored.folder / f'{stored.stem}.{name}'}: is not as it was written, and is left out")


def _sampling(
    table: pa.Table, shards: Mapping[str, list[StoredTask]]
) -> Iterator[tuple[str, Mapping[str, float] | None]]:
    """Of the shards of each model in the table, its method and what its images took."""
    methods = dict(zip(table["model_id"].to_pylist(), table["method"].to_pylist(), strict=True))
    for name, stored in shards.items():
        method = methods.get(name.rpartition("-")[2])
        if method is not None:
            yield from ((method, _numbers(shard.record.facts.get("sampling"))) for shard in stored)


def _numbers(found: Any) -> Mapping[str, float] | None:
    """What a record says of its sampling; None where it is not as this release writes it."""
    is_whole = isinstance(found, dict) and all(
        isinstance(found.get(field.name), int | float) for field in fields(SamplingCost)
    )
    return found if is_whole else None


def _intact_images(shards: Mapping[str, list[StoredTask]], problems: list[str]) -> Iterator[Path]:
    """The files of images that are as they were written; the others are named."""
    for shard in (shard for stored in shards.values() for shard in stored):
        path = shard.intact(IMAGES)
        if path:
            yield path
        else:
            problems.append(f"{shard.folder / f'{shard.stem}.{IMAGES}'}: is not as it was written, so it is not shown")


def _images(files: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Every image once."""
    seen: set[str] = set()
    for table in map(read_images, files):
        for sha, png in zip(table["image_sha256"].to_pylist(), table["png"].to_pylist(), strict=True):
            if sha not in seen:
                seen.add(sha)
                yield sha, png
