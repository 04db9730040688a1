"""What a run does now, for somebody who only reads its folder: counts, running tasks, rates, and the time left."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import rates_for, task_seconds
from efface.cluster.scheduler.time_left import TimeLeft
from efface.cluster.storage.journal import DriverOpened, Event, TaskEnded, TaskStarted, read_journal, running_tasks
from efface.cluster.storage.lease import active_driver
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.summary import RunSummary, summarize
from efface.cluster.tasks.task import Task
from efface.cluster.workers.worker import Step, last_step
from efface.errors import StorageError, UserError

RECENT = 120.0
"""Seconds by whose tasks the rates now are measured."""


@dataclass(frozen=True)
class RunningTask:
    """What a worker does."""

    worker: int
    description: str
    seconds: float
    """Since it was begun."""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    """Of a training."""


@dataclass(frozen=True)
class LiveRun:
    """A run at this moment."""

    summary: RunSummary
    driver: str | None
    """Who works on it."""
    running: tuple[RunningTask, ...]
    rates: dict[str, float]
    """Units a second, by the kind of task, over the last minutes; kinds of which none ended lately are left out."""
    seconds_left: float | None
    """None: not known, or nobody works on it."""


def live_run(plan: Plan, folder: RunFolder) -> LiveRun:
    """Read records and journal."""
    summary = summarize(plan, folder)
    driver = active_driver(folder.root)
    if driver is None:
        return LiveRun(summary, None, (), {}, None)
    now = datetime.now(UTC)
    events = _of_last_driver(list(read_journal(folder)))
    tasks = {task.id: task for task in plan.tasks}
    started = [event for event in running_tasks(iter(events)) if event.id in tasks]
    running = tuple(
        RunningTask(event.worker, event.description, _age(event, now), *_step(folder, tasks[event.id]))
        for event in started
    )
    return LiveRun(
        summary, driver, running, _rates(events, tasks, now), _seconds_left(plan, folder, events, started, now)
    )


def _of_last_driver(events: Sequence[Event]) -> list[Event]:
    starts = [i for i, event in enumerate(events) if isinstance(event, DriverOpened)]
    return list(events[starts[-1] :]) if starts else []


def _age(event: Event, now: datetime) -> float:
    try:
        return max(0.0, (now - datetime.fromisoformat(event.time)).total_seconds())
    except (ValueError, TypeError):  # a journal of somebody else's
        return 0.0


def _step(folder: RunFolder, task: Task) -> Step | tuple[()]:
    path = folder.task_log(task)
    try:
        return (last_step(path.read_text(errors="replace")) if path else None) or ()
    except (OSError, StorageError):  # not written yet
        return ()


def _rates(events: Sequence[Event], tasks: dict[str, Task], now: datetime) -> dict[str, float]:
    units: dict[str, int] = {}
    for event in events:
        if isinstance(event, TaskEnded) and event.state == "done" and event.id in tasks and _age(event, now) <= RECENT:
            units[event.task] = units.get(event.task, 0) + tasks[event.id].size
    seconds = min(RECENT, _age(events[0], now)) if events else RECENT
    return {kind: count / max(seconds, 1.0) for kind, count in units.items()}


def _seconds_left(
    plan: Plan, folder: RunFolder, events: Sequence[Event], started: Sequence[TaskStarted], now: datetime
) -> float | None:
    done = set(folder.records(plan.tasks))
    ended = {e.id: e.seconds for e in events if isinstance(e, TaskEnded) and e.state == "done"}
    try:
        rates = rates_for(plan)
    except UserError:
        rates = None
    tasks = [task for task in plan.tasks if task.id not in done or task.id in ended]
    expected = {task.id: task_seconds(task, plan, rates) if rates else None for task in tasks}
    estimate = TimeLeft(tasks, expected, max(1, len({event.worker for event in started})))
    by_id = {task.id: task for task in tasks}
    for id, seconds in ended.items():
        if id in by_id:
            estimate.ended(by_id[id], seconds)
    return estimate.seconds((by_id[event.id], _age(event, now)) for event in started if event.id in by_id)
