"""Repairing a run folder: records that no longer hold are withdrawn, so that their tasks are done again."""

from collections.abc import Iterable

from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.task import Task


def withdraw_damaged(folder: RunFolder, tasks: Iterable[Task]) -> list[Task]:
    """Hash every output of `tasks` and withdraw the records of those that were changed; these tasks.

    Only whoever holds the lease of the run may do that.
    """
    damaged = [task for task in tasks if not folder.is_intact(task)]
    for task in damaged:
        folder.withdraw(folder.record_file(task))
    return damaged
