"""The control of an attack: the same attack on a model that never knew the concept, as a task of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from efface.cluster.tasks.attack import ATTACK, AttackTask
from efface.config_files import read_config
from efface.errors import JobFailure
from efface.eval.attacking.attack_control import CONTROL, ControlComparison, ControlShows, compare
from efface.eval.attacking.attack_result import AttackResult
from efface.files import content_id, local_copy, write_json

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.storage.run_folder import RunFolder
    from efface.cluster.workers.worker import Worker
    from efface.models.delta import Delta

SHOWS = "shows.json"
"""The output beside what the attack came to: how much the control shows of other concepts."""


@dataclass(frozen=True)
class ControlTask(AttackTask):
    """One attack on the control; `model` is the base, of which the control is a delta."""

    kind = "control"

    control: str
    """The id of the control's delta, which lies in the run folder."""

    @cached_property
    def id(self) -> str:
        return content_id([*self.search, "control", self.control])

    def run(self, worker: Worker) -> None:
        from efface.eval.attacking.attack_control import shown_others

        worker.set_resident(None)
        delta, judge, context = self._delta(worker), worker.judges()[0], worker.context
        concept_set, prompts = context.concept_set, context.prompt_set
        shows = shown_others(worker.base, delta, worker.recipe, judge, self.target.concept, concept_set, prompts)
        try:
            result = self.attacked(worker, delta, self.control)
        finally:
            worker.base.swap(None)
        paths = [worker.folder.output(self, name) for name in (ATTACK, SHOWS)]
        for path, content in zip(paths, (result, ControlShows(shows=shows)), strict=True):
            write_json(path, content.model_dump(mode="json"))
        worker.finish(self, paths, note=result.note, calls=result.calls, ends=result.ends)

    def _delta(self, worker: Worker) -> Delta:
        from efface.models.delta import Delta

        path = worker.folder.control(self.control)
        if not path.is_file():
            raise JobFailure(f"{path}: the control is not there; the run, started again where it is at hand, copies it")
        with local_copy(path) as file:
            delta = Delta.load(file)
        if delta.id != self.control:
            raise JobFailure(f"{path}: is not as it was written; remove it and start the run again")
        return delta

    @property
    def label(self) -> str:
        return CONTROL

    @property
    def resident(self) -> None:
        return None

    def describe(self) -> str:
        return f"{self.attack} on the control for {self.concept}"


def compared_with_controls(plan: Plan, folder: RunFolder) -> Iterator[ControlComparison]:
    """What the control says of each attack that is done like its control, both as they were written."""
    controls = {control.search: control for control in plan.of_kind(ControlTask) if folder.is_intact(control)}
    for task in plan.of_kind(AttackTask) if controls else ():
        control = controls.get(task.search)
        if control and not isinstance(task, ControlTask) and task.model.job and folder.is_intact(task):
            found, taught = (read_config(AttackResult, folder.output(one, ATTACK)) for one in (task, control))
            yield compare(found, taught, read_config(ControlShows, folder.output(control, SHOWS)).shows)
