"""The leaderboard: one row per method and one for the base, as CSV for machines and as a table for people."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from efface.eval.scores.scoring import BASE
from efface.files import as_path, write_atomic
from efface.text import csv_cell, rich_text


@dataclass(frozen=True)
class LeaderboardRow:
    """One method's line. Scores lie in [0, 1], higher is better; `low` and `high` are the 95 % interval of
    `err_mean`.

    challenge_all, challenge_unet, global_l2, relative_l2: see `weight_change.measure`, over all parts or the
    UNet alone; seconds: of the unlearning itself, all models of the method together. None where not known.
    broken: images that are no evidence (`image_errors.py`); unread: verdicts on whole images that could not be read.
    passes_per_image, seconds_per_image: see `ImageCost`.
    """

    method: str
    concepts: int
    forget: float
    indirect: float
    adversarial: float
    adjacent: float
    retain: float
    err_mean: float
    err_of_means: float
    low: float
    high: float
    challenge_all: float | None = None
    challenge_unet: float | None = None
    global_l2: float | None = None
    relative_l2: float | None = None
    seconds: float | None = None
    broken: int = 0
    unread: int = 0
    passes_per_image: float | None = None
    seconds_per_image: float | None = None


@dataclass(frozen=True)
class ImageCost:
    """What one image of a method takes: passes of the UNet, each of one latent with one prompt, and seconds."""

    passes: float
    seconds: float

    @staticmethod
    def mean(costs: Sequence[Mapping[str, float]]) -> "ImageCost":
        """Over all images of `SamplingCost`s."""
        images, rows, seconds = (sum(cost[key] for cost in costs) for key in ("images", "unet_rows", "seconds"))
        return ImageCost(rows / max(1, images), seconds / max(1, images))


def leaderboard(
    scores: Mapping[str, Mapping[str, Any]],
    weight_changes: Mapping[str, Mapping[str, Any]] | None = None,
    seconds: Mapping[str, float] | None = None,
    image_costs: Mapping[str, ImageCost] | None = None,
) -> list[LeaderboardRow]:
    """Rows from what `score_table` gave for each label: the base first, then by `err_mean`, the best first.

    weight_changes: label -> `mean_weight_change`; seconds: label -> seconds; image_costs: label -> cost of an image,
    the base's under "base". Where methods have different questions there is one base row for each different score of
    the base.
    """
    weight_changes, seconds, image_costs = weight_changes or {}, seconds or {}, image_costs or {}
    bases: list[tuple[str, Mapping[str, Any]]] = []
    for label, score in scores.items():
        base = score["base"]
        if base is not None and all(base != seen for _, seen in bases):
            bases.append((BASE if not bases else f"{BASE} ({label})", base))
    methods = [
        _row(label, score, weight_changes.get(label), seconds.get(label), image_costs.get(label))
        for label, score in scores.items()
    ]
    return [
        *(_row(label, score, None, None, image_costs.get(BASE)) for label, score in bases),
        *sorted(methods, key=lambda row: (-row.err_mean, row.method)),
    ]


def _row(
    label: str,
    score: Mapping[str, Any],
    change: Mapping[str, Any] | None,
    seconds: float | None,
    cost: ImageCost | None,
) -> LeaderboardRow:
    low, high = score["intervals"]["err_mean"]
    return LeaderboardRow(
        method=label,
        concepts=len(score["concepts"]),
        **score["axes"],
        err_mean=score["err_mean"],
        err_of_means=score["err_of_means"],
        low=low,
        high=high,
        challenge_all=change["all"]["challenge"] if change else None,
        challenge_unet=change["unet"]["challenge"] if change else None,
        global_l2=change["all"]["global_l2"] if change else None,
        relative_l2=change["all"]["relative_l2"] if change else None,
        seconds=seconds,
        broken=sum(score["invalid"]["images"].values()),
        unread=score["invalid"]["unread"],
        passes_per_image=cost.passes if cost else None,
        seconds_per_image=cost.seconds if cost else None,
    )


def write_csv(path: str | Path, rows: Sequence[LeaderboardRow]) -> None:
    """Every number in full; an empty cell where it is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(LeaderboardRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in asdict(row).items()} for row in rows)
    write_atomic(as_path(path), text.getvalue().encode())


def rich_table(rows: Sequence[LeaderboardRow], width: int = 100) -> Table:
    """The rows in at most `width` columns of text, at least 70; "change" is the relative L2 of all weights,
    "broken", where there are any, counts images that are no evidence; "passes" of the UNet for one image are there
    where methods differ in them.

    Below 100 columns the interval, the seconds and the passes are left out, which the CSV always has.
    """
    full_width = width >= 100
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("method", overflow="fold", max_width=24)
    axes = ("forget", "indir.", "advers.", "adjac.", "retain")
    interval, seconds = (("95 %\ninterval",), ("sec.",)) if full_width else ((), ())
    broken = ("bro-\nken",) if any(row.broken for row in rows) else ()
    passes = ("pas-\nses",) if full_width and len({row.passes_per_image for row in rows} - {None}) > 1 else ()
    for head in ("n", *axes, "ERR\nmean", *interval, "ERR of\nmeans", "change\nrel. L2", *seconds, *passes, *broken):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            rich_text(row.method),
            str(row.concepts),
            *(f"{value:.3f}" for value in (row.forget, row.indirect, row.adversarial, row.adjacent, row.retain)),
            f"{row.err_mean:.3f}",
            *([f"{row.low:.3f}-{row.high:.3f}"] if full_width else []),
            f"{row.err_of_means:.3f}",
            "" if row.relative_l2 is None else f"{row.relative_l2:.1e}",
            *(["" if row.seconds is None else f"{row.seconds:.0f}"] if full_width else []),
            *(["" if row.passes_per_image is None else f"{row.passes_per_image:.0f}"] if passes else []),
            *([str(row.broken or "")] if broken else []),
            style="dim" if row.method.startswith(BASE) else None,
        )
    return table
