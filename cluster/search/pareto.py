"""What a search found: all its trials, and those that no other beats in ERR, weight change and time at once."""

from collections.abc import Mapping, Sequence

from rich.table import Column, Table

from efface.cluster.search.result import TrialRow
from efface.cluster.storage.run_folder import RunFolder
from efface.concepts.prompts import AXES
from efface.csv_tables import csv_table
from efface.eval.scores.results import Scores
from efface.files import write_atomic, write_json
from efface.text_tables import text_table

OBJECTIVES = {"err_mean": "max", "weight_change": "min", "seconds": "min"}
"""ERR; relative L2 norm of the change of all weights; seconds of one worker to train the models."""


def pareto_front(points: Sequence[Mapping[str, float]], objectives: Mapping[str, str] = OBJECTIVES) -> list[int]:
    """The indices of the points that no other dominates: none is as good in every objective and better in one."""
    signs = {name: 1.0 if which == "max" else -1.0 for name, which in objectives.items()}
    values = [tuple(sign * point[name] for name, sign in signs.items()) for point in points]

    def is_dominated(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True)) for other in values)

    return [index for index, mine in enumerate(values) if not is_dominated(mine)]


def front_of(rows: Sequence[TrialRow], last_rung: int) -> list[TrialRow]:
    """The Pareto front of the trials that were judged on the last rung, the best ERR first; a config once.

    last_rung: its images of each prompt.
    """
    found: dict[str, tuple[TrialRow, dict[str, float]]] = {}
    for row in rows:
        scores, cost = row.result.scores, row.result.cost
        if row.result.state == "judged" and scores and cost and scores.images_per_prompt == last_rung:
            point = {"err_mean": scores.err_mean, "weight_change": cost.weight_change, "seconds": cost.seconds}
            found[row.id] = row, point
    judged = list(found.values())
    front = [judged[index] for index in pareto_front([point for _, point in judged])]
    front.sort(key=lambda entry: (-entry[1]["err_mean"], entry[1]["weight_change"], entry[1]["seconds"]))
    return [row for row, _ in front]


def write_results(folder: RunFolder, rows: Sequence[TrialRow], front: Sequence[TrialRow], base: Scores) -> None:
    """trials.csv, pareto.csv and pareto.json in the folder."""
    fields = list(dict.fromkeys(name for row in rows for name in row.point))
    write_atomic(folder.root / "trials.csv", _csv(rows, fields))
    write_atomic(folder.root / "pareto.csv", _csv(front, fields))
    known = {"err_mean": base.err_mean, "interval": base.intervals.err_mean, "axes": base.axes}
    write_json(
        folder.root / "pareto.json",
        {"objectives": OBJECTIVES, "base": known, "front": [row.as_json() for row in front]},
    )


def rich_table(front: Sequence[TrialRow]) -> Table:
    """Judged trials in columns of text; "change" is the relative L2 of all weights."""
    fields = list(dict.fromkeys(name for row in front for name in row.point))
    heads = ("trial", *fields, "images a\nprompt", "ERR\nmean", "95 %\ninterval", "rela-\ntive L2", "sec-\nonds")
    lines = []
    for row in front:
        scores, cost = row.result.scores, row.result.cost
        assert scores and cost
        low, high = scores.interval
        lines.append(
            (
                row.number,
                *(short(row.point[name]) for name in fields),
                scores.images_per_prompt,
                f"{scores.err_mean:.3f}",
                f"{low:.3f}-{high:.3f}",
                f"{cost.weight_change:.1e}",
                f"{cost.seconds:.0f}",
            )
        )
    return text_table([Column(head, justify="right") for head in heads], lines, padding=(0, 1, 0, 0))


def short(value: object) -> str:
    """A value of a config in a table or line for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _csv(rows: Sequence[TrialRow], fields: Sequence[str]) -> bytes:
    """Every number in full; an empty cell where it is not known."""
    columns = ("score", "err_mean", "low", "high", *AXES, "weight_change", "challenge", "seconds", "reason")
    lines = []
    for row in rows:
        flat = row.as_json()
        low, high = flat.get("interval", (None, None))
        flat |= {**flat.get("axes", {}), "low": low, "high": high}
        rest = [flat.get(name) for name in ("images_per_prompt", *columns)]
        lines.append((row.number, row.id, row.result.state, *(row.point[name] for name in fields), *rest))
    return csv_table(["number", "id", "state", *fields, "images_per_prompt", *columns], lines).encode()
