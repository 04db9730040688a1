"""Several methods in one job: a list of edits, each on what the one before left.

    methods:
      - {compose: [{method: speed, preset: miniature}, {method: hirm, preset: miniature}], label: speed+hirm}

An edit that trains has the model before it as its student and its teacher; a closed form solves for the weights that it
finds. In a chain of requests the first edit goes on from the request before. The delta is that of all edits together.
"""

from pydantic import Field
from torch import Tensor

from efface.models.delta import Kind
from efface.train.composed_method import ComposedMethod, Edit, RunEdit, as_delta, cumulative
from efface.train.method import MethodConfig, UnlearningTask, register


class ComposeConfig(MethodConfig):
    edits: tuple[Edit, ...] = Field(
        default_factory=lambda: (Edit(method="speed"), Edit(method="hirm")),
        min_length=1,
        description="methods with their presets and configs, in the order in which they edit",
    )


@register("compose")
class Compose(ComposedMethod):
    """A list of edits, each on what the one before left."""

    Config = ComposeConfig
    config: ComposeConfig

    @property
    def edits(self) -> tuple[Edit, ...]:
        return self.config.edits

    def runs(self, concepts: int, continual: bool) -> list[tuple[Edit, int]]:
        return [(edit, 1 if continual else concepts) for edit in self.edits]

    def compose(self, task: UnlearningTask, run: RunEdit) -> tuple[Kind, dict[str, Tensor]]:
        for method in self.methods:
            kind, tensors = run(method, cumulative(method, task))
            task.base.swap(as_delta(task, kind, tensors))
        return kind, tensors
