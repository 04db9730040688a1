"""A chain of requests, judged after each of them: what the newest erased, what it cost, and what came back.

After stage k the model has erased the targets 1 … k. With A_k(c, axis) the score of target c on an axis
after stage k (the share of images without it, on the axes forget, indirect and adversarial)

    relapse_k(j, axis)  =  A_j(j, axis) - A_k(j, axis)            for j < k, in [-1, 1], 0 is best

is what target j, erased by its own request, has come back by since: the growth D_k(j) - D_j(j) of the share of its
images in which it is seen. Below 0 it is more thoroughly gone than before. The mean is over the earlier targets.

    retention_k  =  ( adjacent_k + retain_k ) / 2

is over all targets so far, whose neighbours and retained concepts they are; those erased meanwhile are left out.
The mean over stages of a number is the area under its curve, divided by the number of stages.

Sources: relapse of the first target over a chain, D_k - D_1, and utility collapse after a few requests: CUIG (ICLR
2026, arXiv 2511.07970), LACU (ECCV 2026, arXiv 2512.02657), the sequential test of UnlearnCanvas (arXiv 2402.11846).
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table

from efface.concepts.prompts import AXES, TARGET_AXES, Axis
from efface.errors import UserError
from efface.eval.scores.results import Summary
from efface.files import as_path, write_atomic
from efface.text import csv_cell, rich_text

COLUMNS = (
    *("stage", "label", "request", "err_mean", *AXES, "retention"),
    *(f"relapse_{axis}" for axis in TARGET_AXES),
)


@dataclass(frozen=True)
class Relapse:
    """How far targets came back that were erased by earlier requests, on the axes forget, indirect and adversarial."""

    concepts: dict[str, dict[Axis, float]]
    mean: dict[Axis, float] | None
    """None of no target."""


@dataclass(frozen=True)
class Stage:
    """The model after a request of a chain."""

    stage: int
    """1, 2, …"""
    label: str
    request: str
    """The concept that this request erased."""
    erased: list[str]
    """All so far, in order."""
    err_mean: float
    axes: dict[Axis, float]
    retention: float
    relapse: Relapse


@dataclass(frozen=True)
class StageMeans:
    """Means over the stages; the relapse is over those that have one."""

    err_mean: float
    axes: dict[Axis, float]
    retention: float
    relapse: dict[Axis, float] | None


@dataclass(frozen=True)
class Stages:
    """A chain of requests, judged after each."""

    stages: list[Stage]
    mean: StageMeans

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def score_stages(chain: Sequence[tuple[str, str]], scores: Mapping[str, Summary[float]]) -> Stages:
    """The stages of one chain, from the labels of its models and the concept that each was to forget, in order.

    scores: by label. Raises UserError where a model of the chain, or one of its concepts, was not scored.
    """
    names = [name for _, name in chain]
    _check(chain, scores)
    stages = []
    for k, (label, name) in enumerate(chain):
        found = scores[label]
        relapses = {
            earlier: relapse(scores[chain[j][0]].concepts[earlier], found.concepts[earlier])
            for j, earlier in enumerate(names[:k])
        }
        stages.append(
            Stage(
                stage=k + 1,
                label=label,
                request=name,
                erased=names[: k + 1],
                err_mean=found.err_mean,
                axes={axis: found.axes[axis] for axis in AXES},
                retention=fmean((found.axes["adjacent"], found.axes["retain"])),
                relapse=Relapse(relapses, _mean(list(relapses.values()), TARGET_AXES)),
            )
        )
    known = [stage.relapse.mean for stage in stages if stage.relapse.mean is not None]
    axes = _mean([stage.axes for stage in stages], AXES)
    assert axes, "a chain has a stage"
    mean = StageMeans(
        err_mean=fmean(stage.err_mean for stage in stages),
        axes=axes,
        retention=fmean(stage.retention for stage in stages),
        relapse=_mean(known, TARGET_AXES),
    )
    return Stages(stages, mean)


def relapse(after_its_own: Mapping[str, float], now: Mapping[str, float]) -> dict[Axis, float]:
    """How far a target came back: its scores by axis right after its own request, less those of now."""
    return {axis: after_its_own[axis] - now[axis] for axis in TARGET_AXES}


def rows(report: Stages) -> list[dict[str, Any]]:
    """A flat row for each stage, then one of the means over stages (`stage` "mean"); None where nothing is known."""
    stages = [_row(stage, stage.relapse.mean, stage.stage, stage.label, stage.request) for stage in report.stages]
    return [*stages, _row(report.mean, report.mean.relapse, "mean")]


def write_csv(path: str | Path, report: Stages) -> None:
    """The rows with every number in full; an empty cell where it is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows(report))
    write_atomic(as_path(path), text.getvalue().encode())


def rich_table(report: Stages, title: str | None = None) -> Table:
    """The rows in at most 100 columns of text; "back" is the mean relapse of the targets erased before."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, title=rich_text(title) if title else None, title_justify="left")
    table.add_column("", justify="right")
    table.add_column("request", overflow="fold", max_width=22)
    axes = ("forget", "indir.", "advers.", "adjac.", "retain")
    for head in ("ERR\nmean", *axes, "reten-\ntion", "back:\nforget", "back:\nindir.", "back:\nadvers."):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows(report):
        numbers = [row[name] for name in COLUMNS[3:]]
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        is_mean = row["stage"] == "mean"
        table.add_row(str(row["stage"]), rich_text(row["request"]), *cells, style="bold" if is_mean else None)
    return table


def _row(
    of: Stage | StageMeans,
    relapse: Mapping[Axis, float] | None,
    stage: int | str,
    label: str = "",
    request: str = "",
) -> dict[str, Any]:
    return {
        **{"stage": stage, "label": label, "request": request, "err_mean": of.err_mean},
        **{axis: of.axes[axis] for axis in AXES},
        "retention": of.retention,
        **{f"relapse_{axis}": relapse[axis] if relapse else None for axis in TARGET_AXES},
    }


def _mean(scores: Sequence[Mapping[Axis, float]], axes: Sequence[Axis]) -> dict[Axis, float] | None:
    """The mean by axis; None of nothing."""
    return {axis: fmean(score[axis] for score in scores) for axis in axes} if scores else None


def _check(chain: Sequence[tuple[str, str]], scores: Mapping[str, Summary[float]]) -> None:
    if not chain:
        raise UserError("a chain without a request has no stages to score")
    names = [name for _, name in chain]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise UserError(f"'{doubled}' is requested twice in one chain, should be erased once")
    for k, (label, _) in enumerate(chain):
        if label not in scores:
            raise UserError(f"stage {k + 1} of the chain, '{label}', has no scores, should be judged like the others")
        missing = [name for name in names[: k + 1] if name not in scores[label].concepts]
        if missing:
            raise UserError(
                f"stage {k + 1} of the chain, '{label}', is not scored on {', '.join(missing)}, "
                "should be on every concept erased so far"
            )
