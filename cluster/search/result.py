"""What came of a trial, as it is kept in the study and written to the tables."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from efface.cluster.search.spec import Point

State = Literal["started", "judged", "over budget", "failed", "errored"]


@dataclass(frozen=True)
class TrialCost:
    """What the models of a trial cost."""

    weight_change: float
    """Relative L2 norm of the change of all weights, mean over the models."""
    challenge: float
    """The same change in the challenge's measure."""
    seconds: float
    """Of one worker, to train all models."""
    jobs: tuple[str, ...]
    """The folders of the models."""


@dataclass(frozen=True)
class TrialScores:
    """How well the models of a trial do, on the images up to a rung."""

    err_mean: float
    interval: tuple[float, float]
    """Of `err_mean`, 95 %."""
    axes: dict[str, float]
    images_per_prompt: int


@dataclass(frozen=True)
class TrialResult:
    """How far a trial came.

    `started`: nothing is known yet. `judged`: it has scores. `over budget`: its weights change too much, so it is not
    judged. `failed`: it cannot be trained or judged. `errored`: it broke on the way, and is tried again by the next
    start of the search; `scores` are those of the rungs before.
    """

    state: State
    score: float | None = None
    """What the search maximises: `err_mean`; below 0 where a trial was not judged."""
    cost: TrialCost | None = None
    scores: TrialScores | None = None
    reason: str | None = None
    """Why it failed or broke."""


STARTED = TrialResult("started")


@dataclass(frozen=True)
class TrialRow:
    """A trial in the order of the search."""

    number: int
    """1, 2, …"""
    id: str
    """Of its point: trials of one config share it."""
    point: Point
    ended: bool
    result: TrialResult = field(default=STARTED)

    def as_json(self) -> dict[str, Any]:
        """Flat, without what is not known."""
        flat: dict[str, Any] = {"number": self.number, "id": self.id, "point": self.point, "ended": self.ended}
        result = self.result
        flat |= {"state": result.state, "score": result.score, "reason": result.reason}
        for part in (result.cost, result.scores):
            flat |= asdict(part) if part else {}
        return {name: value for name, value in flat.items() if value is not None}
