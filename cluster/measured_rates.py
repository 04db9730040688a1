"""Rates from what finished tasks took: means over images, steps and models, kept on this machine for the next plan."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import TABLES, Rates, measured_file
from efface.cluster.storage.records import Record
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.task import RateUse, Task
from efface.config_files import read_config
from efface.errors import UserError
from efface.files import write_json

Sums = dict[tuple[str, str], tuple[float, float]]
"""By table and name: a sum, and of how many."""


def update_measured_rates(plan: Plan, folder: RunFolder, tasks: Iterable[Task]) -> list[Path]:
    """Keep what a run took for `tasks`, which were left before it; the files written, one for each device.

    A cache that cannot be written only means that nothing is learned.
    """
    tasks = list(tasks)
    written = []
    for rates in measure_rates(plan, folder.records(tasks), tasks):
        path = measured_file(rates.device, plan.base.name)
        try:
            write_json(path, merge_rates(_read(path), rates).model_dump(mode="json"))
        except UserError:
            continue
        written.append(path)
    return written


def measure_rates(plan: Plan, records: Mapping[str, Record], tasks: Iterable[Task]) -> list[Rates]:
    """The rates by which the finished of `tasks` were done, one for each device."""
    sums: dict[str, Sums] = {}
    for task in tasks:
        record = records.get(task.id)
        if not task.teaches_rates or record is None or record.seconds is None or record.device is None:
            continue
        of_device = sums.setdefault(record.device, {})
        written = sum(output.bytes for output in record.outputs.values())
        uses = task.rate_uses(plan)
        for unit, amount in (("seconds", record.seconds), ("bytes", float(written))):
            use = next((use for use in uses if use.table.startswith(unit)), None)
            if use:
                _add(of_device, use, amount)
    return [_means(device, plan.base.name, of_device) for device, of_device in sorted(sums.items())]


def _add(sums: Sums, use: RateUse, amount: float) -> None:
    total, counted = sums.get((use.table, use.name), (0.0, 0.0))
    sums[use.table, use.name] = (total + amount, counted + use.times)


def merge_rates(old: Rates | None, new: Rates) -> Rates:
    """Means over what both stand on."""
    if old is None:
        return new
    sums: Sums = {}
    for rates in (old, new):
        for table in TABLES:
            for name, mean in getattr(rates, table).items():
                total, counted = sums.get((table, name), (0.0, 0.0))
                count = rates.counts.get(table, {}).get(name, 0)
                sums[table, name] = (total + mean * count, counted + count)
    return _means(new.device, new.base, sums)


def _means(device: str, base: str | None, sums: Sums) -> Rates:
    tables: dict[str, dict[str, float]] = {table: {} for table in TABLES}
    counts: dict[str, dict[str, int]] = {}
    for (table, name), (total, count) in sorted(sums.items()):
        if total > 0 and count:
            tables[table][name] = total / count
            counts.setdefault(table, {})[name] = round(count)
    return Rates(device=device, base=base, counts=counts, **tables)


def _read(path: Path) -> Rates | None:
    """What was measured before; None where nothing was, or the file is damaged."""
    try:
        return read_config(Rates, path)
    except UserError:
        return None
