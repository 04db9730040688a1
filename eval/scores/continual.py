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

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Column, Table

from efface.concepts.prompts import AXES, TARGET_AXES, Axis
from efface.csv_tables import csv_table
from efface.errors import UserError
from efface.eval.scores.leaderboard import AXIS_HEADS
from efface.eval.scores.results import Summary
from efface.files import as_path, write_atomic
from efface.text import rich_text
from efface.text_tables import name_column, number_columns, text_table


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


@dataclass(frozen=True)
class StageRow:
    """A stage as a line of a table, or the means over stages; None where nothing is known."""

    stage: int | str
    """"mean": of all stages."""
    label: str
    request: str
    err_mean: float
    forget: float
    indirect: float
    adversarial: float
    adjacent: float
    retain: float
    retention: float
    relapse_forget: float | None
    relapse_indirect: float | None
    relapse_adversarial: float | None

    @property
    def numbers(self) -> tuple[float | None, ...]:
        return astuple(self)[3:]


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


def rows(report: Stages) -> list[StageRow]:
    """A row for each stage, then one of the means over stages."""
    stages = [_row(stage, stage.relapse.mean, stage.stage, stage.label, stage.request) for stage in report.stages]
    return [*stages, _row(report.mean, report.mean.relapse, "mean")]


def write_csv(path: str | Path, report: Stages) -> None:
    """The rows with every number in full; an empty cell where it is not known."""
    text = csv_table([field.name for field in fields(StageRow)], map(astuple, rows(report)))
    write_atomic(as_path(path), text.encode())


def rich_table(report: Stages, title: str | None = None) -> Table:
    """The rows in at most 100 columns of text; "back" is the mean relapse of the targets erased before."""
    numbers = number_columns(
        "ERR\nmean", *AXIS_HEADS, "reten-\ntion", "back:\nforget", "back:\nindi-\nrect", "back:\nadver-\nsarial"
    )
    found = rows(report)
    return text_table(
        [Column("", justify="right"), name_column("request", 22), *numbers],
        [(row.stage, row.request, *("-" if n is None else f"{n:.3f}" for n in row.numbers)) for row in found],
        ["bold" if row.stage == "mean" else None for row in found],
        title=rich_text(title) if title else None,
        title_justify="left",
    )


def _row(
    of: Stage | StageMeans,
    relapse: Mapping[Axis, float] | None,
    stage: int | str,
    label: str = "",
    request: str = "",
) -> StageRow:
    back: Mapping[Axis, float | None] = relapse or dict.fromkeys(TARGET_AXES)
    return StageRow(
        stage=stage,
        label=label,
        request=request,
        err_mean=of.err_mean,
        forget=of.axes["forget"],
        indirect=of.axes["indirect"],
        adversarial=of.axes["adversarial"],
        adjacent=of.axes["adjacent"],
        retain=of.axes["retain"],
        retention=of.retention,
        relapse_forget=back["forget"],
        relapse_indirect=back["indirect"],
        relapse_adversarial=back["adversarial"],
    )


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
