"""What a metric over a whole model is: a function of the unedited base and a delta, to numbers by name.

    @METRICS.register("changed-tensors")
    def changed_tensors(base: Base, delta: Delta) -> dict[str, float]:
        return {"changed_tensors": len(delta.edited(base))}

One file each in `eval/metrics/`, or an entry point of the group `efface.metrics`. A campaign names those it wants
under `evaluation.metrics`; the numbers of each model are kept in a record, and stand in `scores.json`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from efface.registry import Registry

if TYPE_CHECKING:
    from efface.models.base import Base
    from efface.models.delta import Delta


class Metric(Protocol):
    """Deterministic, and leaves the base as it was."""

    def __call__(self, base: "Base", delta: "Delta") -> Mapping[str, float]:
        """Finite numbers by name. Raises UserError or JobFailure where the delta cannot be measured."""


METRICS: Registry[Metric] = Registry("metric", "efface.metrics", package="efface.eval.metrics")
