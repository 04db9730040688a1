"""The image table of a run that may not be finished: of the models that were judged to the end, none of them damaged.

A plan says which models those are. Where none can be made, the run's own table does, by its rows of each model; and
where there is no such table either, that is said.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa

from efface.cluster.campaign.plan import Plan
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.stored_tasks import StoredTask
from efface.cluster.tasks.judging import VERDICTS
from efface.errors import UserError
from efface.eval.judging.image_table import SCHEMA, read_table


def stored_verdicts(
    folder: RunFolder, plan: Plan | None, shards: Mapping[str, Sequence[StoredTask]], problems: list[str]
) -> pa.Table:
    """shards: by the folder of their model. What is left out, and what is not known, is added to the problems."""
    parts = [SCHEMA.empty_table()]
    expected = None if plan else _rows_by_model(folder, problems)
    planned = {model.folder: {shard.id for shard in plan.shards[model.id]} for model in plan.models} if plan else {}
    for name, stored in shards.items():
        of_model = [shard for shard in stored if not plan or shard.record.id in planned.get(name, ())]
        table = _verdicts(name, of_model, problems)
        if table is None:
            continue
        if plan:
            is_whole = {shard.record.id for shard in of_model} == planned.get(name)
        else:
            rows = Counter(table["model_id"].to_pylist())
            is_whole = expected is None or all(expected[model] == count for model, count in rows.items())
            if not is_whole:
                problems.append(f"{name}: its verdicts are not those of {folder.table.name}, so it is left out")
        if is_whole:
            parts.append(table)
    return pa.concat_tables(parts)


def _verdicts(name: str, shards: Sequence[StoredTask], problems: list[str]) -> pa.Table | None:
    """All rows of a model; None, and a problem, where some are damaged."""
    parts = [SCHEMA.empty_table()]
    for shard in shards:
        path = shard.intact(VERDICTS)
        if path is None:
            problems.append(
                f"{shard.folder / f'{shard.stem}.{VERDICTS}'}: is not as it was written, so {name} is left out"
            )
            return None
        parts.append(read_table(path))
    return pa.concat_tables(parts)


def _rows_by_model(folder: RunFolder, problems: list[str]) -> Counter[str] | None:
    """How many rows the run's own table has of each model; None, and a problem, where that is not known."""
    unknown = "so whether models were judged to the end is not known, and scores may be of some of their images alone"
    if not folder.table.is_file():
        problems.append(f"there is no {folder.table.name} yet, {unknown}")
        return None
    try:
        return Counter(read_table(folder.table)["model_id"].to_pylist())
    except UserError as error:
        problems.append(f"{error}, {unknown}")
        return None
