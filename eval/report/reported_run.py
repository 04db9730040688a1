"""What a report shows of one run. Whoever reads run folders fills it; the pages are made from it and nothing else."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from efface.eval.attacking.attack_control import ControlComparison
from efface.eval.attacking.attack_result import AttackResult
from efface.eval.attacking.attack_transfer import Transferred
from efface.eval.calibration.calibration import Calibration
from efface.eval.published_scores import PublishedScore
from efface.eval.scores.continual import Stages
from efface.eval.scores.leaderboard import LeaderboardRow
from efface.eval.scores.results import Scores
from efface.eval.weight_change_values import LayerChange


@dataclass(frozen=True)
class ReportedModel:
    """A model that a job made, from its record."""

    id: str
    """Of the job, and of the model in the image table."""
    label: str
    """The method's name in tables."""
    method: str
    name: str
    """Of its folder under `jobs/`."""
    concepts: tuple[str, ...]
    seed: int
    config: Mapping[str, Any]
    """The method's settings, as JSON."""
    seconds: float | None
    """Of the training; None where that is not known."""
    device: str | None
    losses: tuple[float, ...]
    """Of each optimiser step; empty for a closed form."""
    changes: Mapping[str, float]
    """Relative L2 change of each parameter group that it touched; groups overlap."""
    layers: Mapping[str, LayerChange] = field(default_factory=dict)
    """Of each layer that it touched."""


@dataclass(frozen=True)
class RunContent:
    """One run, as far as it is done."""

    name: str
    path: str
    """The name of its folder: a report is the same wherever the run is."""
    table: pa.Table
    """The image table of the models that were judged to the end, of all judges."""
    judge: str
    """Of the headline."""
    rows: tuple[LeaderboardRow, ...]
    scores: Mapping[str, Scores]
    """Of each method, by the headline judge."""
    stages: Mapping[str, Stages]
    """Of each chain of requests, by its method."""
    models: tuple[ReportedModel, ...]
    calibrations: tuple[Calibration, ...]
    images: Callable[[], Iterator[tuple[str, bytes]]]
    """Every image that was kept, once, as its hash and a PNG."""
    attacks: tuple[AttackResult, ...] = ()
    transfers: tuple[Transferred, ...] = ()
    """What was found against one model, tried on the others."""
    controls: tuple[ControlComparison, ...] = ()
    """What the same attacks do on a model that never knew the concept."""
    notes: tuple[str, ...] = ()
    """What a reader of the leaderboard has to know."""
    problems: tuple[str, ...] = ()
    """What is missing, failed or damaged, and what should be known before results are believed; a sentence each."""
    published: tuple[PublishedScore, ...] = ()
    """Results of others on the same concepts."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What makes the run again, by what it is called: the command, the campaign, hashes, versions."""
