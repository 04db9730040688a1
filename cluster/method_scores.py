"""The scores of a run's methods, and which of them count: of a chain of requests the last model alone."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from efface.cluster.campaign.plan import Plan
from efface.cluster.tasks.model import BASE
from efface.cluster.tasks.training import TrainingResult
from efface.errors import UserError
from efface.eval.scores.continual import Stages, score_stages
from efface.eval.scores.leaderboard import ImageCost
from efface.eval.scores.results import Scores
from efface.eval.scores.scoring import score_table


def score_methods(table: pa.Table, labels: Iterable[str]) -> tuple[dict[str, Scores], list[str]]:
    """The scores of each label in a table of one judge, or of the base where none has any; and why some have none."""
    scores: dict[str, Scores] = {}
    unscored = []
    present = set(table["method"].unique().to_pylist())
    for label in [*labels, BASE]:
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


def chains_of(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    """Label of a chain's last model -> label and request of each of its models, in order, from the first one on."""
    chains: list[list[tuple[str, str]]] = []
    for model in plan.jobs:
        if model.job and model.job.strategy == "continual" and (model.predecessor or not model.job.parent):
            if model.predecessor is None:
                chains.append([])
            chains[-1].append((model.label, model.job.concepts[-1]))
    return {chain[-1][0]: chain for chain in chains}


def scored_stages(chains: Mapping[str, Sequence[tuple[str, str]]], scores: Mapping[str, Scores]) -> dict[str, Stages]:
    """What there is to say of every chain of `chains_of` that is scored up to some request, as far as it is."""
    stages = {}
    for label, chain in chains.items():
        scored = list(itertools.takewhile(lambda stage: stage[0] in scores, chain))
        if scored:
            stages[label] = score_stages(scored, scores)
    return stages


def of_last_stages(chains: Mapping[str, Sequence[tuple[str, str]]], scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """The scores without those of models that another request followed."""
    followed = {label for chain in chains.values() for label, _ in chain[:-1]}
    return {label: score for label, score in scores.items() if label not in followed}


def total_seconds(trained: Sequence[TrainingResult]) -> float | None:
    """Of all trainings together; None where that is not known of each."""
    known = [t.metrics.seconds for t in trained if t.metrics.seconds is not None]
    return sum(known) if len(known) == len(trained) else None


def image_costs(sampling: Iterable[tuple[str, Mapping[str, float] | None]]) -> dict[str, ImageCost]:
    """By label, from what each shard of a method says of its sampling; without one whose shards do not all say it, as
    those of earlier releases."""
    found: dict[str, list[Mapping[str, float] | None]] = {}
    for label, cost in sampling:
        found.setdefault(label, []).append(cost)
    return {label: ImageCost.mean(list(filter(None, costs))) for label, costs in found.items() if all(costs)}
