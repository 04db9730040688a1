"""Adversarial prompts that earlier campaigns found, kept on this machine by the ids of the tasks that found them.

The ids are hashes of everything that decides the result, so whatever is kept under one is what the task would find.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.prompt_search import CANDIDATES, FOUND, Candidates, PromptCheck, PromptSearch
from efface.cluster.tasks.task import Task
from efface.config_files import StrictModel, parse
from efface.errors import UserError
from efface.eval.attacking.found_prompts import FoundPrompts
from efface.files import write_json
from efface.models.fingerprint import cache_folder
from efface.plain_files import read_plain

PromptTask = PromptSearch | PromptCheck


def prompt_tasks(tasks: Iterable[Task]) -> list[PromptTask]:
    """Those that find prompts."""
    return [task for task in tasks if isinstance(task, PromptSearch | PromptCheck)]


def cached(task: PromptTask) -> StrictModel | None:
    """What was found earlier; None where nothing was, or the file is damaged."""
    with suppress(OSError, ValueError, RecursionError, UserError):
        return parse(_model(task), json.loads(read_plain(_file(task))), str(_file(task)))
    return None


def restore(tasks: Iterable[Task], folder: RunFolder) -> list[Task]:
    """Finish tasks of a run by what was found earlier; those that are now done."""
    wanted = prompt_tasks(tasks)
    done = folder.records(wanted)
    restored: list[Task] = []
    for task in wanted:
        known = None if task.id in done else cached(task)
        if known is not None:
            path = folder.output(task, _output(task))
            write_json(path, known.model_dump(mode="json"))
            folder.finish(task, [path], cached=True)
            restored.append(task)
    return restored


def keep(tasks: Iterable[Task], folder: RunFolder) -> None:
    """Keep what a run has found, for later ones. A cache that cannot be written costs time only."""
    wanted = [task for task in prompt_tasks(tasks) if not _file(task).is_file()]
    done = folder.records(wanted)
    for task in wanted:
        if task.id in done and folder.is_intact(task):
            with suppress(OSError, UserError):
                write_json(_file(task), json.loads(read_plain(folder.output(task, _output(task)))))


def _file(task: PromptTask) -> Path:
    return cache_folder() / "prompts" / f"{task.id}.json"


def _output(task: PromptTask) -> str:
    return CANDIDATES if isinstance(task, PromptSearch) else FOUND


def _model(task: PromptTask) -> type[StrictModel]:
    return Candidates if isinstance(task, PromptSearch) else FoundPrompts
