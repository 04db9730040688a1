"""What a metric over a whole model is: a function of the unedited base and a delta, to numbers by name.

    @METRICS.register("changed-tensors")
    def changed_tensors(base: Base, delta: Delta) -> dict[str, float]:
        return {"changed_tensors": len(delta.edited(base))}

A metric that makes images and has them judged is a class instead (`JudgedMetric`), as `eval/metrics/compositional.py`.

One file each in `eval/metrics/`, or an entry point of the group `efface.metrics`. A campaign names those it wants
under `evaluation.metrics`; the numbers of each model are kept in a record, and stand in `scores.json`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from efface.registry import Registry

if TYPE_CHECKING:
    from efface.concepts.concept import Concept, ConceptSet
    from efface.eval.judge import Judge
    from efface.models.base import Base
    from efface.models.delta import Delta
    from efface.models.recipe import Recipe


class Metric(Protocol):
    """Deterministic, and leaves the base as it was."""

    def __call__(self, base: "Base", delta: "Delta") -> Mapping[str, float]:
        """Finite numbers by name. Raises UserError or JobFailure where the delta cannot be measured."""


@dataclass(frozen=True)
class JudgedContext:
    """What a judged metric has beside base and delta."""

    recipe: "Recipe"
    concept_set: "ConceptSet"
    forgotten: "tuple[Concept, ...]"
    """What the delta was made to forget."""
    judge: "Judge"
    """Of the headline, calibrated."""
    judged: "tuple[Concept, ...]"
    """Every concept that it may be asked about."""


class JudgedMetric(ABC):
    """Of images that it makes of base and delta. Deterministic, and leaves the base as it was."""

    version: ClassVar[int] = 1
    """Goes up when the same models would give other numbers."""

    @abstractmethod
    def __call__(self, base: "Base", delta: "Delta", context: JudgedContext) -> Mapping[str, float]:
        """Finite numbers by name. Raises UserError or JobFailure where the delta cannot be measured."""


METRICS: Registry[Metric | type[JudgedMetric]] = Registry("metric", "efface.metrics", package="efface.eval.metrics")
