"""A model of a campaign: the unedited base, or what a job makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from efface.train.job import Job

BASE = "base"
"""The method label of the unedited base, which is judged beside every model."""
NOT_FETCHED = "not fetched yet"
"""The id of a base whose weights are not at hand; a plan can be looked at with it, and not executed."""


@dataclass(frozen=True)
class Model:
    """A model to be judged: the base, or what a job makes of it."""

    label: str
    """The method's name in tables."""
    job: Job | None
    base_id: str
    predecessor: str | None = None
    """The folder of the model that this one continues, in a chain of requests."""
    closed_form: bool = False
    """Made in closed form, for which one process is enough."""
    delta_id: str | None = None
    """Of a delta that existed before: another of the same job, with other tensors, is another model."""

    @cached_property
    def id(self) -> str:
        return self.delta_id or (self.job.id if self.job else self.base_id[:16])

    @cached_property
    def folder(self) -> str:
        """Its name in the run folder; also the name of the product that tasks about it require."""
        return f"{self.job.stem}-{self.id}" if self.job else f"base-{self.id}"

    @property
    def method(self) -> str:
        """The method's own name, of which there are few, not its label, of which a sweep has hundreds."""
        return self.job.method if self.job else BASE

    def describe(self) -> str:
        """In a few words: `esd: cat`, `the base`."""
        return f"{self.label}: {', '.join(self.job.concepts)}" if self.job else "the base"
