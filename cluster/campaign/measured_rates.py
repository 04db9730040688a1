"""Rates from what finished work took: means over images, steps and models, kept on this machine for the next plan."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from efface.cluster.campaign.plan import Model, Plan, Shard
from efface.cluster.campaign.rates import TABLES, Rates, measured_file
from efface.cluster.scheduler.dispatch import RemainingTasks
from efface.cluster.storage.run_folder import RunFolder, Task
from efface.config_files import read_config
from efface.errors import UserError
from efface.files import write_json

Measure = tuple[str, str, float, int]
"""A table, a name in it, a sum, and of how many."""


def update_measured_rates(plan: Plan, folder: RunFolder, remaining: RemainingTasks) -> list[Path]:
    """Keep what a run took for the work that was `remaining` before it; the files written, one for each device.

    A cache that cannot be written only means that nothing is learned.
    """
    written = []
    for rates in measure_rates(plan, folder, [*remaining.jobs, *remaining.shards]):
        path = measured_file(rates.device, plan.base.name)
        try:
            write_json(path, merge_rates(_read(path), rates).model_dump(mode="json"))
        except UserError:
            continue
        written.append(path)
    return written


def measure_rates(plan: Plan, folder: RunFolder, task_list: Iterable[Task]) -> list[Rates]:
    """The rates by which the finished part of `task_list` was done, one for each device. Records are all that
    is read."""
    sums: dict[str, dict[tuple[str, str], tuple[float, int]]] = {}
    tasks = list(task_list)
    records = folder.records(tasks)
    for task in tasks:
        record = records.get(task.id)
        if record is None or not {"seconds", "device"} <= record.keys():
            continue
        of_device = sums.setdefault(record["device"], {})
        for table, name, amount, count in _measures(plan, task, record):
            total, counted = of_device.get((table, name), (0.0, 0))
            of_device[table, name] = (total + amount, counted + count)
    return [_means(device, plan.base.name, of_device) for device, of_device in sorted(sums.items())]


def merge_rates(old: Rates | None, new: Rates) -> Rates:
    """Means over what both stand on."""
    if old is None:
        return new
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for rates in (old, new):
        for table in TABLES:
            for name, mean in getattr(rates, table).items():
                total, counted = sums.get((table, name), (0.0, 0))
                count = rates.counts.get(table, {}).get(name, 0)
                sums[table, name] = (total + mean * count, counted + count)
    return _means(new.device, new.base, sums)


def _measures(plan: Plan, task: Task, record: dict[str, Any]) -> Iterator[Measure]:
    written = sum(output["bytes"] for output in record["outputs"].values())
    if isinstance(task, Shard):
        images = len(task.eval_requests)
        yield "seconds_per_image", plan.recipe.name, record["seconds"], images
        yield "bytes_per_image", plan.recipe.name, written, images
    elif isinstance(task, Model) and task.job:
        method, steps = task.job.method, len(record["metrics"]["losses"])
        if steps:
            yield "seconds_per_step", method, record["seconds"], steps
        else:
            yield "seconds_per_job", method, record["seconds"], len(task.job.concepts)
        yield "bytes_per_delta", method, written, 1


def _means(device: str, base: str | None, sums: dict[tuple[str, str], tuple[float, int]]) -> Rates:
    tables: dict[str, dict[str, float]] = {table: {} for table in TABLES}
    counts: dict[str, dict[str, int]] = {}
    for (table, name), (total, count) in sorted(sums.items()):
        if total > 0 and count:
            tables[table][name] = total / count
            counts.setdefault(table, {})[name] = count
    return Rates(device=device, base=base, counts=counts, **tables)


def _read(path: Path) -> Rates | None:
    """What was measured before; None where nothing was, or the file is damaged."""
    try:
        return read_config(Rates, path)
    except UserError:
        return None
