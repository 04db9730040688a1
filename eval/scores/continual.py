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
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table

from efface.concepts.prompts import AXES, TARGET_AXES, Axis
from efface.errors import UserError
from efface.files import as_path, write_atomic
from efface.text import csv_cell, rich_text

Scores = Mapping[str, Mapping[str, Any]]
"""Label -> what `score_table` gave for it."""

COLUMNS = (
    *("stage", "label", "request", "err_mean", *AXES, "retention"),
    *(f"relapse_{axis}" for axis in TARGET_AXES),
)


def score_stages(chain: Sequence[tuple[str, str]], scores: Scores) -> dict[str, Any]:
    """The stages of one chain, from the labels of its models and the concept that each was to forget, in order.

        {"stages": [{"stage": k, "label": …, "request": NAME, "erased": [NAME, …], "err_mean": …, "axes": {axis: …},
                     "retention": …,
                     "relapse": {"concepts": {NAME: {axis: …}}, "mean": {axis: …}}}, …],
         "mean": {"err_mean": …, "axes": {axis: …}, "retention": …, "relapse": {axis: …}}}

    The relapse has the axes forget, indirect and adversarial; of the first stage it is empty, and its mean null, as
    that over stages is of a chain of one. Raises UserError where a model of the chain, or one of its concepts, was not
    scored.
    """
    names = [name for _, name in chain]
    _check(chain, scores)
    stages = []
    for k, (label, name) in enumerate(chain):
        found = scores[label]
        relapses = {
            earlier: relapse(scores[chain[j][0]]["concepts"][earlier], found["concepts"][earlier])
            for j, earlier in enumerate(names[:k])
        }
        stages.append(
            {
                "stage": k + 1,
                "label": label,
                "request": name,
                "erased": names[: k + 1],
                "err_mean": found["err_mean"],
                "axes": {axis: found["axes"][axis] for axis in AXES},
                "retention": fmean((found["axes"]["adjacent"], found["axes"]["retain"])),
                "relapse": {"concepts": relapses, "mean": _mean(list(relapses.values()), TARGET_AXES)},
            }
        )
    mean = {
        "err_mean": fmean(stage["err_mean"] for stage in stages),
        "axes": _mean([stage["axes"] for stage in stages], AXES),
        "retention": fmean(stage["retention"] for stage in stages),
        "relapse": _mean([stage["relapse"]["mean"] for stage in stages[1:]], TARGET_AXES),
    }
    return {"stages": stages, "mean": mean}


def relapse(after_its_own: Mapping[str, float], now: Mapping[str, float]) -> dict[Axis, float]:
    """How far a target came back: its scores by axis right after its own request, less those of now."""
    return {axis: after_its_own[axis] - now[axis] for axis in TARGET_AXES}


def rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A flat row for each stage, then one of the means over stages (`stage` "mean"); None where nothing is known."""
    return [_row(stage, stage["relapse"]["mean"]) for stage in report["stages"]] + [
        _row({"stage": "mean", "label": "", "request": "", **report["mean"]}, report["mean"]["relapse"])
    ]


def write_csv(path: str | Path, report: Mapping[str, Any]) -> None:
    """The rows with every number in full; an empty cell where it is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows(report))
    write_atomic(as_path(path), text.getvalue().encode())


def rich_table(report: Mapping[str, Any], title: str | None = None) -> Table:
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


def _row(stage: Mapping[str, Any], came_back: Mapping[str, float] | None) -> dict[str, Any]:
    return {
        **{name: stage[name] for name in ("stage", "label", "request", "err_mean")},
        **stage["axes"],
        "retention": stage["retention"],
        **{f"relapse_{axis}": came_back[axis] if came_back else None for axis in TARGET_AXES},
    }


def _mean(scores: Sequence[Mapping[Axis, float]], axes: Sequence[Axis]) -> dict[Axis, float] | None:
    """The mean by axis; None of nothing."""
    return {axis: fmean(score[axis] for score in scores) for axis in axes} if scores else None


def _check(chain: Sequence[tuple[str, str]], scores: Scores) -> None:
    if not chain:
        raise UserError("a chain without a request has no stages to score")
    names = [name for _, name in chain]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise UserError(f"'{doubled}' is requested twice in one chain, should be erased once")
    for k, (label, _) in enumerate(chain):
        if label not in scores:
            raise UserError(f"stage {k + 1} of the chain, '{label}', has no scores, should be judged like the others")
        missing = [name for name in names[: k + 1] if name not in scores[label]["concepts"]]
        if missing:
            raise UserError(
                f"stage {k + 1} of the chain, '{label}', is not scored on {', '.join(missing)}, "
                "should be on every concept erased so far"
            )
