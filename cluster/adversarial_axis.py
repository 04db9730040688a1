"""What the adversarial axis of every ERR of a run is asked by: the same prompts for all models.

They are *static* where they were all found on the base alone, as those of the shipped sets were, and *given* where a
prompt set of a user has some, as it does not say how they were found.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from efface.cluster.campaign.plan import Plan
from efface.cluster.tasks.model import BASE
from efface.concepts.prompts import prompt_set_names
from efface.eval.attacking.found_prompts import FoundPrompts


@dataclass(frozen=True)
class BaseRates:
    """Share of the base's images by prompts that the run found which show the concept; None: not known."""

    selected: float | None
    """Of the images by which the prompts were chosen."""
    measured: float | None
    """Of those that are scored, which have other seeds."""


@dataclass(frozen=True)
class AdversarialAxis:
    """Where the prompts come from."""

    kind: Literal["static", "given"]
    prompts: dict[str, str]
    """By target, in words."""
    base_rates: dict[str, BaseRates]
    """By target, of prompts that the run found."""

    def as_json(self) -> dict[str, Any]:
        """Without base rates where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "base_rates" or value}


def adversarial_axis(plan: Plan, found: Sequence[FoundPrompts], table: pa.Table) -> AdversarialAxis | None:
    """None where the axis is not asked. table: of the judge that the headline goes by."""
    if "adversarial" not in plan.axes:
        return None
    sources = {prompts.concept: f"found by {prompts.attack}" for prompts in found}
    of_base = table.filter(pc.and_(pc.equal(table["method"], BASE), pc.equal(table["axis"], "adversarial")))
    of_set_alone = any(target.name not in sources for target in plan.targets)
    return AdversarialAxis(
        kind="given" if of_set_alone and plan.prompt_set.name not in prompt_set_names() else "static",
        prompts={t.name: sources.get(t.name, f"prompt set {plan.prompt_set.name}") for t in plan.targets},
        base_rates={
            prompts.concept: BaseRates(prompts.selection_rate, _present_share(of_base, prompts.concept))
            for prompts in found
        },
    )


def _present_share(table: pa.Table, concept: str) -> float | None:
    """Of the rows of a concept with a verdict; None where there is none."""
    present = table.filter(pc.equal(table["concept"], concept))["present"].drop_null().to_pylist()
    return sum(present) / len(present) if present else None
