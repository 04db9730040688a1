"""From finished tasks to results in the run folder: the image table, scores, the leaderboard and the contact sheets.

Records and outputs are only read here; damaged ones are reported, and `storage/repair.py` withdraws them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from efface.cluster.adversarial_axis import adversarial_axis
from efface.cluster.campaign.plan import Plan
from efface.cluster.method_scores import (
    chains_of,
    image_costs,
    of_last_stages,
    score_methods,
    scored_stages,
    total_seconds,
)
from efface.cluster.run_results import Results
from efface.cluster.storage.records import Record, sha256
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.attack import ATTACK, TRANSFER, AttackTask, TransferTask
from efface.cluster.tasks.calibration import CALIBRATION
from efface.cluster.tasks.control import compared_with_controls
from efface.cluster.tasks.judging import IMAGES, VERDICTS, Shard
from efface.cluster.tasks.metric import MetricTask
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.prompt_search import FOUND
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingResult
from efface.config_files import read_config
from efface.eval.attacking.attack_result import AttackResult
from efface.eval.attacking.attack_table import attack_rows, write_attack_csv
from efface.eval.attacking.attack_transfer import Transferred, Transfers
from efface.eval.attacking.found_prompts import FoundPrompts
from efface.eval.calibration.calibration import read_calibration
from efface.eval.calibration.judge_accuracy import mean_accuracy, together
from efface.eval.judging.image_errors import ImageError, broken_images
from efface.eval.judging.image_table import read_images, read_table, write_table
from efface.eval.judging.judge_spec import judge_name
from efface.eval.report.contact_sheet import write_sheets
from efface.eval.scores.comparison import differences
from efface.eval.scores.continual import write_csv as write_stages
from efface.eval.scores.corrected import corrected_by_method
from efface.eval.scores.leaderboard import (
    leaderboard,
    notes,
    write_csv,
)
from efface.eval.weight_change_values import mean_weight_change
from efface.files import write_json


class DamagedOutputs(Exception):
    """Outputs are not what their records say."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        """tasks: those whose outputs may have been changed."""
        super().__init__(f"{len(tasks)} tasks, such as {tasks[0].describe()}")
        self.tasks = tasks


def collect_results(plan: Plan, folder: RunFolder) -> Results:
    """Collect all shards that are done, score them, and write the results into the run folder.

    Every byte of a verdict, of a calibration, and of the images that are shown, is checked against its record. Raises
    DamagedOutputs where some were changed; nothing is written then.
    """
    records = folder.records(plan.tasks)
    failed = folder.failures(plan.models)
    failures = [
        f"{model.folder} ({failed[model.id].stage}): {failed[model.id].reason}"
        for model in plan.models
        if model.id in failed
    ]
    complete = [
        model
        for model in plan.models
        if (model.job is None or model.id in records) and all(shard.id in records for shard in plan.shards[model.id])
    ]
    _check(folder, records, [(calibration, [CALIBRATION]) for calibration in plan.calibrations])
    _check(folder, records, [(check, [FOUND]) for check in plan.prompt_checks])
    prompts = _found_prompts(plan, folder, records)
    warnings = [found.warning for found in prompts if found.warning]
    by_concept = {
        calibration.judge: read_calibration(folder.output(calibration, CALIBRATION)).accuracy
        for calibration in plan.calibrations
        if calibration.id in records
    }
    accuracy = {judge: mean_accuracy(found) for judge, found in by_concept.items()}
    measured = {judge: together(found.values()) for judge, found in by_concept.items()}
    if not complete:
        return Results(folder, [], {}, accuracy, failures, [], measured=measured, warnings=warnings)
    shards = [shard for model in complete for shard in plan.shards[model.id]]
    _check(folder, records, [(shard, [VERDICTS]) for shard in shards])
    parts = [read_table(folder.output(shard, VERDICTS)) for shard in shards]
    table = pa.concat_tables(parts)
    of_judge = _of_first_judge(plan, table)
    write_sheets(folder.sheets, of_judge, _finder(folder, records, shards, parts))
    write_table(folder.table, table)

    labels = dict.fromkeys(model.label for model in plan.jobs)
    scores, unscored = score_methods(of_judge, labels)
    by_label: dict[str, list[TrainingResult]] = {}
    for model in complete:
        if model.job:
            trained = TrainingResult.model_validate(records[model.id].facts)
            by_label.setdefault(model.label, []).append(trained)
    changes = {label: mean_weight_change([t.weight_change for t in trained]) for label, trained in by_label.items()}
    seconds = {label: known for label, trained in by_label.items() if (known := total_seconds(trained)) is not None}
    chains = chains_of(plan)
    stages = scored_stages(chains, scores)
    last = of_last_stages(chains, scores)
    compared = differences(last)
    costs = image_costs((shard.model.label, records[shard.id].facts.get("sampling")) for shard in shards)
    rows = leaderboard(last, changes, seconds, costs, compared)
    footnotes = notes(last, rows)
    summary = {
        "methods": {label: score.as_json() for label, score in scores.items()},
        "weight_change": {label: change.as_json() for label, change in changes.items()},
        "seconds": seconds,
        "judges": accuracy,
    }
    broken = _broken(of_judge)
    attacks = _attacks(plan, folder, records)
    controls = list(compared_with_controls(plan, folder))
    attacked = attack_rows(attacks, _missing_attacks(plan, records))
    if attacked:
        write_attack_csv(folder.attacks, attacked)
    corrected = corrected_by_method(of_judge, by_concept.get(plan.calibrations[0].judge, {}), scores)
    axis = adversarial_axis(plan, prompts, of_judge)
    optional = {
        "corrected": {label: one.as_json() for label, one in corrected.items()},
        "differences": {label: difference.as_json() for label, difference in compared.items()},
        "image_costs": {label: asdict(cost) for label, cost in costs.items()},
        "adversarial_axis": axis.as_json() if axis else None,
        "attacks": [result.model_dump(mode="json", exclude={"instances"}) for result in attacks],
        "controls": [comparison.model_dump(mode="json") for comparison in controls],
        "transfers": [row.model_dump(mode="json") for row in _transfers(plan, folder, records)],
        "stages": {label: chain.as_json() for label, chain in stages.items()},
        "metrics": _metrics(plan, complete, records),
        "broken": broken,
        "warnings": [*plan.warnings, *warnings],
    }
    write_json(folder.scores, {**summary, **{name: value for name, value in optional.items() if value}})
    write_csv(folder.leaderboard, rows)
    for label, chain in stages.items():
        write_stages(folder.stages(label), chain)
    return Results(
        folder, rows, stages, accuracy, failures, unscored, broken, measured, footnotes, warnings, attacked, controls
    )


def _attacks(plan: Plan, folder: RunFolder, records: Mapping[str, Record]) -> list[AttackResult]:
    """What the attacks came to that are done, in the order of the plan."""
    done = [task for task in plan.of_kind(AttackTask) if task.id in records]
    _check(folder, records, [(task, [ATTACK]) for task in done])
    return [read_config(AttackResult, folder.output(task, ATTACK)) for task in done]


def _missing_attacks(plan: Plan, records: Mapping[str, Record]) -> dict[tuple[str, str], int]:
    """How many of a method and attack are not done: still to come, or given up."""
    return Counter((task.label, task.attack) for task in plan.of_kind(AttackTask) if task.id not in records)


def _transfers(plan: Plan, folder: RunFolder, records: Mapping[str, Record]) -> list[Transferred]:
    """The matrix of attacks and models: what was found against one, tried on another."""
    done = [task for task in plan.of_kind(TransferTask) if task.id in records]
    _check(folder, records, [(task, [TRANSFER]) for task in done])
    return [row for task in done for row in read_config(Transfers, folder.output(task, TRANSFER)).rows]


def _found_prompts(plan: Plan, folder: RunFolder, records: Mapping[str, Record]) -> list[FoundPrompts]:
    """What the run has found to ask, concept by concept."""
    done = [check for check in plan.prompt_checks if check.id in records]
    return [read_config(FoundPrompts, folder.output(check, FOUND)) for check in done]


def _broken(table: pa.Table) -> dict[str, dict[ImageError, int]]:
    """The images of each method that are no evidence; of several judges the first saw them all."""
    labels = table.filter(pc.is_valid(table["image_error"]))["method"].unique().to_pylist()
    return {label: broken_images(table.filter(pc.equal(table["method"], label))) for label in labels}


def _check(folder: RunFolder, records: Mapping[str, Record], outputs: Sequence[tuple[Task, Sequence[str]]]) -> None:
    """Hash the named outputs of each task that is done. Raises DamagedOutputs with all that were changed."""
    damaged = []
    for task, names in outputs:
        paths = [folder.output(task, name) for name in names]
        record = records.get(task.id)
        if record and any(sha256(path) != record.outputs[path.name].sha256 for path in paths):
            damaged.append(task)
    if damaged:
        raise DamagedOutputs(damaged)


def _metrics(
    plan: Plan, complete: Sequence[Model], records: Mapping[str, Record]
) -> dict[str, dict[str, dict[str, float]]]:
    """By label and metric, the mean over the label's models of every number."""
    kept = {model.folder for model in complete}
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for task in plan.of_kind(MetricTask):
        if task.model.folder in kept and task.id in records:
            numbers = records[task.id].facts["numbers"]
            found.setdefault(task.label, {}).setdefault(task.name, []).append(numbers)
    return {
        label: {metric: _means(models) for metric, models in by_metric.items()} for label, by_metric in found.items()
    }


def _means(models: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each number that all have."""
    names = [name for name in models[0] if all(name in numbers for numbers in models)]
    return {name: sum(numbers[name] for numbers in models) / len(models) for name in names}


def _finder(
    folder: RunFolder, records: Mapping[str, Record], shards: Sequence[Shard], parts: Sequence[pa.Table]
) -> Callable[[Sequence[str]], pa.Table]:
    """A function that finds images by their hashes, and reads only the shards that they are in. It raises
    DamagedOutputs where one of those was changed; then others may be."""

    def find(hashes: Sequence[str]) -> pa.Table:
        hash_array = pa.array(hashes, pa.string())
        having = [
            shard
            for shard, part in zip(shards, parts, strict=True)
            if pc.any(pc.is_in(part["image_sha256"], hash_array)).as_py()
        ]
        try:
            _check(folder, records, [(shard, [IMAGES]) for shard in having])
        except DamagedOutputs:
            raise DamagedOutputs(shards) from None
        return pa.concat_tables([read_images(folder.output(shard, IMAGES)) for shard in having])

    return find


def _of_first_judge(plan: Plan, table: pa.Table) -> pa.Table:
    """The rows of the judge the headline goes by."""
    judges = table["judge"].unique().to_pylist()
    if len(judges) == 1:
        return table
    return table.filter(pc.equal(table["judge"], judge_name(plan.calibrations[0].judge)))
