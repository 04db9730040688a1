"""From finished shards to what people read: the image table, scores, the leaderboard and the contact sheets."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from efface.cluster.campaign.plan import BASE, Plan, Shard
from efface.cluster.storage.run_folder import Damaged, RunFolder
from efface.errors import UserError
from efface.eval.calibration import mean_accuracy, read_calibration
from efface.eval.contact_sheet import write_sheets
from efface.eval.image_table import read_images, read_table, write_table
from efface.eval.metrics.weight_change import mean_weight_change
from efface.eval.scores.continual import rich_table as stages_table
from efface.eval.scores.continual import score_stages
from efface.eval.scores.continual import write_csv as write_stages
from efface.eval.scores.leaderboard import LeaderboardRow, leaderboard, rich_table, write_csv
from efface.eval.scores.scoring import score_table
from efface.files import write_json

MIN_TRUSTED_ACCURACY = 0.9
"""Accuracy on the base's images below which a judge's verdicts come with a warning."""


@dataclass(frozen=True)
class Results:
    """What a run came to."""

    folder: RunFolder
    rows: list[LeaderboardRow]
    stages: dict[str, dict[str, Any]]
    """Of each chain of requests, by its method's label: what `score_stages` says."""
    accuracy: dict[str, float | None]
    """Of each judge on images of the unedited base."""
    failures: list[str]
    unscored: list[str]
    """Why a method of the plan has no row."""

    def show(self, console: Console) -> None:
        """The leaderboard, and where the rest lies."""
        if self.rows:
            console.print(rich_table(self.rows, console.width))
        for label, chain in self.stages.items():
            console.print(stages_table(chain, f"{label}, request by request"))
        for judge, accuracy in self.accuracy.items():
            said = "unknown" if accuracy is None else f"{accuracy:.1%}"
            console.print(f"judge {judge}: {said} right on images of the unedited base", markup=False, soft_wrap=True)
            if accuracy is not None and accuracy < MIN_TRUSTED_ACCURACY:
                console.print("[yellow]read its scores with care: it is wrong too often[/yellow]")
        for reason in self.unscored:
            console.print(Text.assemble(("not scored", "yellow"), f": {reason}"), soft_wrap=True)
        for path in (self.folder.table, self.folder.scores, self.folder.leaderboard, self.folder.sheets):
            if path.exists():
                console.print(str(path), soft_wrap=True, markup=False)


def collect_results(plan: Plan, folder: RunFolder) -> Results | None:
    """Put together all shards that are done, score them, and write the results into the run folder.

    Every byte of a verdict, and of the images that are shown, is checked against its record. None where some were
    changed: their records are withdrawn, so that they are made again.
    """
    made = folder.records(plan.jobs)
    failed = folder.failures(plan.models)
    failures = [
        f"{model.folder} ({failed[model.id].get('stage')}): {failed[model.id].get('reason')}"
        for model in plan.models
        if model.id in failed
    ]
    complete = [
        model for model in plan.models if len(folder.records(plan.shards[model.id])) == len(plan.shards[model.id])
    ]
    complete = [model for model in complete if model.job is None or model.id in made]
    accuracy = {
        calibration.judge: mean_accuracy(read_calibration(folder.calibration(calibration)).accuracy)
        for calibration in plan.calibrations
        if folder.verified(calibration)
    }
    if not complete:
        return Results(folder, [], {}, accuracy, failures, [])
    shards = [shard for model in complete for shard in plan.shards[model.id]]
    parts = [_verdicts(folder, shard) for shard in shards]
    if any(part is None for part in parts):
        return None
    table = pa.concat_tables(parts)
    write_table(folder.table, table)

    scores, unscored = _scores(plan, table)
    by_label: dict[str, list[dict[str, Any]]] = {}
    for model in complete:
        if model.id in made:
            by_label.setdefault(model.label, []).append(made[model.id])
    changes = {label: mean_weight_change([r["weight_change"] for r in records]) for label, records in by_label.items()}
    seconds = {
        label: sum(r["metrics"]["seconds"] for r in records)
        for label, records in by_label.items()
        if all("seconds" in r["metrics"] for r in records)
    }
    stages = _stages(plan, scores)
    rows = leaderboard(_of_last_stages(plan, scores), changes, seconds)
    summary = {"methods": scores, "weight_change": changes, "seconds": seconds, "judges": accuracy}
    write_json(folder.scores, {**summary, "stages": stages} if stages else summary)
    write_csv(folder.leaderboard, rows)
    for label, chain in stages.items():
        write_stages(folder.stages(label), chain)
    try:
        write_sheets(folder.sheets, _of_first_judge(plan, table), _finder(folder, shards, parts))
    except Damaged:
        for shard in shards:  # where some were changed, others may be
            folder.verified(shard)
        return None
    return Results(folder, rows, stages, accuracy, failures, unscored)


def _chains(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    """Label of a chain's last model -> label and request of each of its models, in order, from the first one on."""
    chains: list[list[tuple[str, str]]] = []
    for model in plan.jobs:
        if model.job and model.job.strategy == "continual" and (model.predecessor or not model.job.parent):
            if model.predecessor is None:
                chains.append([])
            chains[-1].append((model.label, model.job.concepts[-1]))
    return {chain[-1][0]: chain for chain in chains}


def _stages(plan: Plan, scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is to be said of every chain that is scored up to some request, as far as it is."""
    stages = {}
    for label, chain in _chains(plan).items():
        scored = list(itertools.takewhile(lambda stage: stage[0] in scores, chain))
        if scored:
            stages[label] = score_stages(scored, scores)
    return stages


def _of_last_stages(plan: Plan, scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scores without those of models that another request followed."""
    followed = {label for chain in _chains(plan).values() for label, _ in chain[:-1]}
    return {label: score for label, score in scores.items() if label not in followed}


def _verdicts(folder: RunFolder, shard: Shard) -> pa.Table | None:
    """The rows of a shard, if its file is what its record says; else the record is withdrawn."""
    if not folder.verified(shard, [folder.verdicts(shard).name]):
        return None
    return read_table(folder.verdicts(shard))


def _finder(
    folder: RunFolder, shards: Sequence[Shard], parts: Sequence[pa.Table]
) -> Callable[[Sequence[str]], pa.Table]:
    """What finds images by their hashes, and reads only the shards that they are in; it raises Damaged where one of
    those was changed."""

    def find(hashes: Sequence[str]) -> pa.Table:
        hash_array = pa.array(hashes, pa.string())
        having = [
            shard
            for shard, part in zip(shards, parts, strict=True)
            if pc.any(pc.is_in(part["image_sha256"], hash_array)).as_py()
        ]
        for shard in having:
            if not folder.verified(shard, [folder.images(shard).name]):
                raise Damaged(f"{folder.images(shard)}: is not as it was written")
        return pa.concat_tables([read_images(folder.images(shard)) for shard in having])

    return find


def _scores(plan: Plan, table: pa.Table) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What `score_table` says of each label by the headline judge, and why some have no score."""
    table = _of_first_judge(plan, table)
    scores: dict[str, dict[str, Any]] = {}
    unscored = []
    present = set(table["method"].unique().to_pylist())
    for label in [*dict.fromkeys(model.label for model in plan.jobs), BASE]:
        if label == BASE and (scores or BASE not in present):
            continue
        if label not in present:
            unscored.append(f"method '{label}' has no model that was judged to the end")
            continue
        try:
            scores[label] = score_table(table, method=label)
        except UserError as error:
            unscored.append(str(error))
    return scores, unscored


def _of_first_judge(plan: Plan, table: pa.Table) -> pa.Table:
    """The rows of the judge the headline goes by."""
    judges = table["judge"].unique().to_pylist()
    if len(judges) == 1:
        return table
    first = Path(plan.calibrations[0].judge).stem
    return table.filter(pc.equal(table["judge"], first))
