"""Scores as values: of one method, and of the difference of two. Tables and JSON are made from them."""

from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from efface.concepts.prompts import Axis
from efface.eval.judging.image_errors import ImageError
from efface.eval.scores.jackknife import Estimates

T = TypeVar("T")


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary(Generic[T]):
    """Of each score its value (`Summary[float]`), or its interval."""

    concepts: dict[str, dict[str, T]]
    """Name -> axis, or "err" -> …"""
    axes: dict[Axis, T]
    err_mean: T
    err_of_means: T

    def as_json(self) -> dict[str, Any]:
        return {
            "concepts": self.concepts,
            "axes": self.axes,
            "err_mean": self.err_mean,
            "err_of_means": self.err_of_means,
        }


@dataclass(frozen=True)
class Invalid:
    """Verdicts that are neither yes nor no, and are left out."""

    null: int
    rows: int
    """Verdicts in all."""
    unread: int
    """Of the null ones those on images that are whole."""
    images: dict[ImageError, int]
    """Images that are no evidence, by their error."""
    concepts: dict[str, dict[Axis, int]]
    """Null verdicts by concept and axis."""


class Range(NamedTuple):
    """The fewest and the most."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


@dataclass(frozen=True)
class Sampling:
    """What the intervals take for a sample of more."""

    prompts: dict[Axis, Range]
    """Of a concept. With one, the interval of the axis is over the images of that prompt and speaks of it only."""
    training_seeds: Range
    """Models of a concept. With one, nothing is known of other seeds."""

    @property
    def single_prompt_axes(self) -> list[Axis]:
        """Axes of which some concept has only one prompt."""
        return [axis for axis, prompts in self.prompts.items() if prompts.least == 1]

    def describe(self) -> str:
        """Of what the intervals speak, in a sentence."""
        groups: dict[str, list[str]] = {}
        for axis, prompts in self.prompts.items():
            groups.setdefault(str(prompts), []).append(axis)
        counts = "; ".join(f"{prompts} on {', '.join(axes)}" for prompts, axes in groups.items())
        seeds = f"{self.training_seeds} training seeds" if self.training_seeds.most > 1 else "one training seed only"
        single = self.single_prompt_axes
        these = f". They speak of these prompts only on {', '.join(single)}, where a concept has one" if single else ""
        return f"95 % intervals over prompts (of a concept: {counts}), their images, and {seeds}{these}"


@dataclass(frozen=True)
class Shown:
    """Of concepts that methods may see, on the axes adjacent and retain; nothing else goes by them.

    A score is the mean over models of the share of images that show the asked concept; None where there is no such
    image.
    """

    concepts: dict[str, dict[Axis, float | None]]
    axes: dict[Axis, float | None]
    nothing_held_out: dict[Axis, list[str]]
    """The concepts whose own axis goes by these too."""


@dataclass(frozen=True)
class Scores(Summary[float]):
    """Of one method, or the base."""

    intervals: Summary[Interval]
    invalid: Invalid
    sampling: Sampling
    shown: Shown
    base: "Scores | None"
    """Of the unedited base on the same questions, where the table has it."""
    estimates: Estimates = field(compare=False, repr=False)
    questions: str = field(compare=False, repr=False)
    """A hash of everything that was asked."""

    def as_json(self) -> dict[str, Any]:
        """`base` is null or the same without "base"."""
        return {**self._own_json(), "base": self.base._own_json() if self.base else None}

    def _own_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "intervals": self.intervals.as_json(),
            "invalid": vars(self.invalid),
            "sampling": {
                "prompts": {axis: list(prompts) for axis, prompts in self.sampling.prompts.items()},
                "training_seeds": list(self.sampling.training_seeds),
                "single_prompt_axes": self.sampling.single_prompt_axes,
            },
            "shown": vars(self.shown),
        }


class Paired(NamedTuple):
    """The difference of two methods on the same questions, with its 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def is_tie(self) -> bool:
        """Whether the data do not say which is better."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Difference:
    """The scores of one method less those of another."""

    to: str
    """The other's label."""
    axes: dict[Axis, Paired]
    err_mean: Paired
    err_of_means: Paired

    def as_json(self) -> dict[str, Any]:
        return {
            "to": self.to,
            "axes": {axis: paired._asdict() for axis, paired in self.axes.items()},
            "err_mean": self.err_mean._asdict(),
            "err_of_means": self.err_of_means._asdict(),
        }
