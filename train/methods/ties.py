"""Independent erasure and merging, as CUIG (ICLR 2026, arXiv 2511.07970) has it for chains of requests.

Every concept is erased by itself, from the unedited base, by another method; the changes of weights are merged by TIES
(`train/ties_merge.py`). So no request drifts away from where the one before had ended. In a chain each request merges
anew what was asked so far; edits that were made are kept in the job's cache.

CUIG merges K/V of the cross-attention, with a `keep_share` of 0.2 to 0.8 and a `scale` of 1.25 for few concepts to 2.75
for many.
"""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from efface.concepts.concept import Concept
from efface.models.delta import Kind
from efface.train.composed_method import ComposedMethod, Edit, RunEdit, as_delta
from efface.train.method import Method, MethodConfig, UnlearningTask, register
from efface.train.ties_merge import ties_merge


class TiesConfig(MethodConfig):
    edit: Edit = Field(
        default_factory=lambda: Edit(method="ca"),
        description="the method that erases each concept, with its preset and config; CUIG: CA",
    )
    keep_share: float = Field(0.5, gt=0, le=1, description="share of a change's entries that stays; CUIG 0.2 to 0.8")
    scale: float = Field(1.25, gt=0, description="what the merged change is multiplied by; CUIG 1.25 to 2.75")


@register("ties")
class Ties(ComposedMethod):
    """Erases each concept by itself from the base, and merges the changes."""

    Config = TiesConfig
    config: TiesConfig
    version = 2
    anew: ClassVar[bool] = True

    @property
    def edits(self) -> tuple[Edit, ...]:
        return (self.config.edit,)

    def runs(self, concepts: int, continual: bool) -> list[tuple[Edit, int]]:
        return [(self.config.edit, 1)] * concepts

    def compose(self, task: UnlearningTask, run: RunEdit) -> tuple[Kind, dict[str, Tensor]]:
        (method,), base, changes = self.methods, task.base, []
        originals = base.originals()
        for concept in task.concepts:
            kind, tensors = run(method, self.alone(method, task, concept))
            edited = as_delta(task, kind, tensors).edited(base)
            changes.append({name: value.to(base.device) - originals[name] for name, value in edited.items()})
        merged = ties_merge(changes, self.config.keep_share, self.config.scale)
        return "weights", {name: originals[name] + change for name, change in merged.items()}

    def alone(self, method: Method, task: UnlearningTask, concept: Concept) -> UnlearningTask:
        """To erase one of the concepts: what is erased beside it is nothing to hold still, or to map it to.

        An edit that sees no other concepts does not know, and so is made once for all requests of a chain.
        """
        others = tuple(other for other in task.concepts if other.name != concept.name)
        return replace(task, concepts=(concept,), erased=others if method.sees_others else ())
