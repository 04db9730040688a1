"""A kind of task in a file of its own: how large the delta of a model is, as a file in the run folder."""

from dataclasses import dataclass, replace

from efface.cluster.campaign.plan import Plan
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import Task
from efface.cluster.workers.worker import Worker
from efface.files import content_id, write_json


@dataclass(frozen=True)
class SizeTask(Task):
    kind = "size"  # the word for it in the journal, progress, metrics and rates

    model: Model
    id: str  # a hash of everything that decides the result
    requires: tuple[str, ...]  # what has to be there first: here the model's training

    def run(self, worker: Worker) -> None:
        size = worker.folder.intact_delta(self.model).stat().st_size
        path = worker.folder.output(self, "size.json")
        write_json(path, {"bytes": size})
        worker.finish(self, [path], bytes=size)  # writes the record, last


def with_sizes(plan: Plan) -> Plan:
    """A plan in which the delta of every model is measured too."""
    tasks = (SizeTask(model, content_id([model.id, "size"]), (model.folder,)) for model in plan.jobs)
    return replace(plan, tasks=(*plan.tasks, *tasks))
