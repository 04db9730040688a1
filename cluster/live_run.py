"""What a run does now, for somebody who only reads its folder: counts, running tasks, rates, and the time left."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import rates_for, task_seconds
from efface.cluster.run_summary import RunSummary, summarize
from efface.cluster.scheduler.time_left import TimeLeft, UnderWay
from efface.cluster.storage.journal import DriverOpened, Event, TaskEnded, read_journal, running_tasks
from efface.cluster.storage.lease import active_driver
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.storage.under_way import Count, how_far
from efface.cluster.tasks.task import Task
from efface.errors import UserError

RECENT = 120.0
"""Seconds by whose tasks the rates now are measured."""


@dataclass(frozen=True)
class RunningTask:
    """What a worker does."""

    worker: int
    description: str
    seconds: float
    """Since it was begun."""
    progress: str | None = None
    """How far it is, in words; None: not known."""


@dataclass(frozen=True)
class LiveRun:
    """A run at this moment."""

    summary: RunSummary
    driver: str | None
    """Who works on it."""
    running: tuple[RunningTask, ...]
    rates: dict[str, float]
    """Units a second, by the kind of task, over the last minutes; kinds of which none was done lately are left out."""
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
    running = [
        (event, UnderWay(task, elapsed, how_far(folder, task, elapsed)))
        for event in running_tasks(iter(events))
        if (task := tasks.get(event.id)) is not None
        for elapsed in [_age(event, now)]
    ]
    shown = tuple(
        RunningTask(event.worker, event.description, one.elapsed, one.far.describe() if one.far else None)
        for event, one in running
    )
    under_way = [one for _, one in running]
    workers = len({event.worker for event, _ in running})
    return LiveRun(
        summary,
        driver,
        shown,
        _rates(events, tasks, under_way, now),
        _seconds_left(plan, folder, events, under_way, workers),
    )


def _of_last_driver(events: Sequence[Event]) -> list[Event]:
    starts = [i for i, event in enumerate(events) if isinstance(event, DriverOpened)]
    return list(events[starts[-1] :]) if starts else []


def _age(event: Event, now: datetime) -> float:
    try:
        return max(0.0, (now - datetime.fromisoformat(event.time)).total_seconds())
    except (ValueError, TypeError):  # a journal of somebody else's
        return 0.0


def _rates(
    events: Sequence[Event], tasks: dict[str, Task], running: Sequence[UnderWay], now: datetime
) -> dict[str, float]:
    seconds = max(1.0, min(RECENT, _age(events[0], now)) if events else RECENT)
    units: dict[str, float] = {}
    for event in events:
        if isinstance(event, TaskEnded) and event.state == "done" and event.id in tasks and _age(event, now) <= RECENT:
            units[event.task] = units.get(event.task, 0) + tasks[event.id].size
    for task, _, of in running:
        if isinstance(of, Count) and of.unit == task.unit:
            units[task.kind] = units.get(task.kind, 0) + of.done * min(1.0, seconds / of.seconds)
    return {kind: count / seconds for kind, count in units.items() if count}


def _seconds_left(
    plan: Plan, folder: RunFolder, events: Sequence[Event], running: Sequence[UnderWay], workers: int
) -> float | None:
    done = set(folder.records(plan.tasks))
    ended = {e.id: e.seconds for e in events if isinstance(e, TaskEnded) and e.state == "done"}
    try:
        rates = rates_for(plan)
    except UserError:
        rates = None
    tasks = [task for task in plan.tasks if task.id not in done or task.id in ended]
    expected = {task.id: task_seconds(task, plan, rates) if rates else None for task in tasks}
    estimate = TimeLeft(tasks, expected, max(1, workers))
    by_id = {task.id: task for task in tasks}
    for id, seconds in ended.items():
        if id in by_id:
            estimate.ended(by_id[id], seconds)
    return estimate.seconds(one for one in running if one.task.id in by_id)
