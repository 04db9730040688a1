"""The leaderboard: one row per method and one for the base, as CSV and as tables for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from rich.table import Table

from efface.concepts.prompts import KEPT_AXES
from efface.csv_tables import csv_table
from efface.eval.scores.comparison import differences
from efface.eval.scores.results import Difference, Range, Scores
from efface.eval.scores.scoring import BASE
from efface.eval.weight_change_values import WeightChange
from efface.files import as_path, write_atomic
from efface.text import shown
from efface.text_tables import name_column, number_columns, text_table

AXIS_HEADS = ("forget", "indi-\nrect", "adver-\nsarial", "adja-\ncent", "retain")
"""Names of the axes above narrow columns."""


@dataclass(frozen=True)
class LeaderboardRow:
    """One method's line. Scores lie in [0, 1], higher is better; `low` and `high` are the 95 % interval of `err_mean`.

    adjacent, retain: of concepts that no method could see; adjacent_shown, retain_shown: of those that it may hold
    still by name, which no other number goes by. None where there are none.
    difference: `err_mean` less that of the method `compared_to`, with the ends of its interval; none for the base, for
    that method itself, and where the questions are not the same.
    prompts: of a concept on an axis, fewest and most; single_prompt_axes: those on which some concept has one, so that
    the intervals speak of these prompts only; training_seeds: models of a concept, fewest and most.
    shown_only_axes: those on which some concept is scored on what methods may see, as nothing was held out for it.
    challenge_all, challenge_unet, global_l2, relative_l2: see `weight_change_values.Norms`, over all parts or the UNet;
    seconds: of the unlearning itself, all models of the method together. None where not known.
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
    compared_to: str = ""
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    prompts: str = ""
    single_prompt_axes: str = ""
    training_seeds: str = ""
    shown_only_axes: str = ""
    challenge_all: float | None = None
    challenge_unet: float | None = None
    global_l2: float | None = None
    relative_l2: float | None = None
    seconds: float | None = None
    broken: int = 0
    unread: int = 0
    adjacent_shown: float | None = None
    retain_shown: float | None = None
    passes_per_image: float | None = None
    seconds_per_image: float | None = None

    @property
    def ties(self) -> bool:
        """Whether the images do not say which of the two is better."""
        low, high = self.difference_low, self.difference_high
        return low is not None and high is not None and low <= 0 <= high


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
    scores: Mapping[str, Scores],
    weight_changes: Mapping[str, WeightChange] | None = None,
    seconds: Mapping[str, float] | None = None,
    image_costs: Mapping[str, ImageCost] | None = None,
    compared: Mapping[str, Difference] | None = None,
) -> list[LeaderboardRow]:
    """Rows from the scores of each label: the base first, then by `err_mean`, the best first.

    weight_changes: label -> mean over its models; seconds: label -> seconds; image_costs: label -> cost of an image,
    the base's under "base"; compared: label -> difference to another method, to the best unless given. Where methods
    have different questions there is one base row for each different score of the base.
    """
    weight_changes, seconds, image_costs = weight_changes or {}, seconds or {}, image_costs or {}
    compared = differences(scores) if compared is None else compared
    bases: list[tuple[str, Scores]] = []
    for label, score in scores.items():
        base = score.base
        if base is not None and all(base != seen for _, seen in bases):
            bases.append((BASE if not bases else f"{BASE} ({label})", base))
    methods = [
        _row(label, score, compared.get(label), weight_changes.get(label), seconds.get(label), image_costs.get(label))
        for label, score in scores.items()
    ]
    return [
        *(_row(label, score, None, None, None, image_costs.get(BASE)) for label, score in bases),
        *sorted(methods, key=lambda row: (-row.err_mean, row.method)),
    ]


def notes(scores: Mapping[str, Scores], rows: Sequence[LeaderboardRow]) -> list[str]:
    """What a reader of the leaderboard has to know: of what the intervals speak, where no method was kept from
    seeing what it is scored on, and what marks a tie."""
    labels: dict[str, list[str]] = {}
    for label, score in scores.items():
        labels.setdefault(score.sampling.describe(), []).append(shown(label))
    lines = [line if len(labels) == 1 else f"{', '.join(of)}: {line}" for line, of in labels.items()]
    lines.extend(_nothing_held_out(scores))
    tied = next((row.compared_to for row in rows if row.ties), None)
    if tied is not None:
        lines.append(f"=: a tie with {shown(tied)}, as the interval of the difference, on the same questions, holds 0")
    return lines


def _nothing_held_out(scores: Mapping[str, Scores]) -> Iterator[str]:
    """A sentence for each axis and its concepts that are scored on what methods may have seen."""
    everything = {concept for score in scores.values() for concept in score.concepts}
    for axis in KEPT_AXES:
        concepts = {concept for score in scores.values() for concept in score.shown.nothing_held_out.get(axis, [])}
        if concepts:
            of = "" if concepts == everything else f" of {', '.join(map(shown, sorted(concepts)))}"
            yield (
                f"nothing is held out on the axis {axis}{of}: it is the score of concepts that methods may hold still "
                "by name, and says nothing of others"
            )


def _row(
    label: str,
    score: Scores,
    compared: Difference | None,
    change: WeightChange | None,
    seconds: float | None,
    cost: ImageCost | None,
) -> LeaderboardRow:
    low, high = score.intervals.err_mean
    difference, difference_low, difference_high = compared.err_mean if compared else (None, None, None)
    prompts = score.sampling.prompts.values()
    return LeaderboardRow(
        method=label,
        concepts=len(score.concepts),
        **score.axes,
        err_mean=score.err_mean,
        err_of_means=score.err_of_means,
        low=low,
        high=high,
        compared_to=compared.to if compared else "",
        difference=difference,
        difference_low=difference_low,
        difference_high=difference_high,
        prompts=str(Range(min(of.least for of in prompts), max(of.most for of in prompts))),
        single_prompt_axes=" ".join(score.sampling.single_prompt_axes),
        training_seeds=str(score.sampling.training_seeds),
        shown_only_axes=" ".join(score.shown.nothing_held_out),
        challenge_all=change.all.challenge if change else None,
        challenge_unet=change.unet.challenge if change else None,
        global_l2=change.all.global_l2 if change else None,
        relative_l2=change.all.relative_l2 if change else None,
        seconds=seconds,
        broken=sum(score.invalid.images.values()),
        unread=score.invalid.unread,
        adjacent_shown=score.shown.axes["adjacent"],
        retain_shown=score.shown.axes["retain"],
        passes_per_image=cost.passes if cost else None,
        seconds_per_image=cost.seconds if cost else None,
    )


def shows_some(rows: Sequence[LeaderboardRow]) -> bool:
    """Whether any method was judged on concepts that it may have seen."""
    return any(row.adjacent_shown is not None or row.retain_shown is not None for row in rows)


def write_csv(path: str | Path, rows: Sequence[LeaderboardRow]) -> None:
    """Every number in full; an empty cell where it is not known."""
    text = csv_table([field.name for field in fields(LeaderboardRow)], map(astuple, rows))
    write_atomic(as_path(path), text.encode())


def rich_table(rows: Sequence[LeaderboardRow], width: int = 100) -> Table:
    """The rows in at most `width` columns of text, at least 70; "relative L2" is that of all weights,
    "broken", where there are any, counts images that are no evidence; "passes" of the UNet for one image are there
    where methods differ in them. "shown" are the two axes before it on concepts that methods may see.

    Below 100 columns the interval, the seconds, the passes and what was shown are left out, which the CSV always has.
    """
    full_width = width >= 100
    interval, seconds = (("95 %\ninterval",), ("sec-\nonds",)) if full_width else ((), ())
    broken = ("bro-\nken",) if any(row.broken for row in rows) else ()
    of_shown = ("adja-\ncent\nshown", "retain\nshown") if full_width and shows_some(rows) else ()
    passes = ("pas-\nses",) if full_width and len({row.passes_per_image for row in rows} - {None}) > 1 else ()
    scores = (*AXIS_HEADS, *of_shown, "ERR\nmean", *interval, "ERR of\nmeans")
    numbers = number_columns("n", *scores, "rela-\ntive L2", *seconds, *passes, *broken)
    lines = [
        (
            row.method,
            row.concepts,
            *(f"{value:.3f}" for value in (row.forget, row.indirect, row.adversarial, row.adjacent, row.retain)),
            *(["" if v is None else f"{v:.3f}" for v in (row.adjacent_shown, row.retain_shown)] if of_shown else []),
            f"{row.err_mean:.3f}",
            *([f"{row.low:.3f}-{row.high:.3f}"] if full_width else []),
            f"{row.err_of_means:.3f}",
            "" if row.relative_l2 is None else f"{row.relative_l2:.1e}",
            *(["" if row.seconds is None else f"{row.seconds:.0f}"] if full_width else []),
            *(["" if row.passes_per_image is None else f"{row.passes_per_image:.0f}"] if passes else []),
            *([row.broken or ""] if broken else []),
        )
        for row in rows
    ]
    styles = ["dim" if row.method.startswith(BASE) else None for row in rows]
    return text_table([name_column("method", 24), *numbers], lines, styles)


def differences_table(rows: Sequence[LeaderboardRow]) -> Table | None:
    """ERR of each method less that of another, on the same questions; None where there is nothing to compare."""
    compared = [row for row in rows if row.difference is not None]
    if not compared:
        return None
    lines = [
        (
            row.method,
            row.compared_to,
            f"{row.difference:.3f}" + ("=" if row.ties else " "),
            f"{row.difference_low:.3f} to {row.difference_high:.3f}",
        )
        for row in compared
    ]
    names = name_column("difference", 36), name_column("to", 36)
    return text_table([*names, *number_columns("ERR\nmean", "95 %\ninterval")], lines)
