"""Methods made of other methods: several edits in one job, with one delta.

An edit is a method with its config, resolved when the job is made, so that the job's id and provenance hold all of it.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from efface.config_files import StrictModel
from efface.errors import UserError
from efface.models.delta import Delta, Kind, stack
from efface.train.method import ClosedFormMethod, Method, Strategy, UnlearningTask, get_method, parse_config


class Edit(StrictModel):
    """One of them."""

    method: str = Field(description="a method that changes weights")
    preset: str | None = Field(None, description="a preset of it, resolved into `config`")
    config: dict[str, Any] = Field({}, description="fields that override the preset")
    version: int = Field(0, ge=0, description="of the method; 0: the one that is known here")

    @model_validator(mode="after")
    def _is_resolved(self) -> "Edit":
        method = get_method(self.method)
        if issubclass(method, ComposedMethod):
            raise UserError(f"an edit by '{self.method}' is made of edits itself: list these in its place")
        if self.version not in (0, method.version):
            known = f"this efface has version {method.version}"
            raise UserError(f"an edit asks for version {self.version} of method '{self.method}', {known}")
        config = parse_config(self.method, self.config, self.preset)
        if method(config).delta_kind == "hook":
            raise UserError(f"an edit by '{self.method}' acts at sampling time, should be by one that changes weights")
        resolved = {"config": config.model_dump(mode="json"), "preset": None, "version": method.version}
        self.__dict__.update(resolved)
        return self

    def made(self) -> Method:
        """The method with its config."""
        return get_method(self.method)(parse_config(self.method, self.config))


RunEdit = Callable[[Method, UnlearningTask], tuple[Kind, dict[str, Tensor]]]
"""Kind and tensors of a method's edit, relative to the unedited base: of what is in place, whatever it changes too."""


class ComposedMethod(Method):
    """A method that edits by others. What is in place of the base when it is asked is the model to go on from."""

    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})

    @property
    @abstractmethod
    def edits(self) -> tuple[Edit, ...]:
        """The edits of its config."""

    @property
    def methods(self) -> tuple[Method, ...]:
        return tuple(edit.made() for edit in self.edits)

    @property
    def group(self) -> str:
        return "+".join(dict.fromkeys(method.group for method in self.methods))

    @abstractmethod
    def runs(self, concepts: int, continual: bool) -> list[tuple[Edit, int]]:
        """The edits that a job of so many concepts takes, and the concepts that each is for."""

    @abstractmethod
    def compose(self, task: UnlearningTask, run: RunEdit) -> tuple[Kind, dict[str, Tensor]]:
        """Kind and tensors, relative to the unedited base. It may put deltas in place of the base, as it likes."""


def cumulative(method: Method, task: UnlearningTask) -> UnlearningTask:
    """The task for an edit: a closed form on an edited model solves for all that was asked so far, as nothing else
    keeps what was erased from being preserved; a method that trains takes the newest request."""
    if not isinstance(method, ClosedFormMethod):
        return task
    return UnlearningTask(**{**vars(task), "concepts": (*task.erased, *task.concepts), "erased": ()})


@contextmanager
def in_place(task: UnlearningTask, tensors: dict[str, Tensor]) -> Iterator[None]:
    """These weights on top of what is in place of the task's base; afterwards that is as it was."""
    base, below = task.base, task.base.applied
    whole = stack(base, below, "weights", tensors)[1] if below is not None else tensors
    base.swap(as_delta(task, "weights", whole))
    try:
        yield
    finally:
        base.swap(below)


def as_delta(task: UnlearningTask, kind: Kind, tensors: dict[str, Tensor]) -> Delta:
    """What is to be put in place of the task's base."""
    return Delta(kind, tensors, {"base_id": task.base.fingerprint})
