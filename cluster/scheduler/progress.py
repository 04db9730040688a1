"""Seeing a campaign run: live bars on a terminal, a plain line now and then in a log."""

import math
import threading
import time
from collections import deque
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import Rates, task_seconds
from efface.cluster.scheduler.queue import Queue
from efface.cluster.scheduler.time_left import TimeLeft, UnderWay
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.storage.under_way import INTERVAL, Count, HowFar, how_far
from efface.cluster.stored_plan import is_campaign
from efface.cluster.tasks.retry_rules import Next, Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.text import rich_text

LOG_INTERVAL = 15.0
"""Seconds between two lines where there is no terminal."""

FIRST_LINE = 1.0
"""Seconds after which a log says what is done, and between two looks at a task until it is known how far that is."""

MAX_NAMED = 3
"""Workers whose tasks a line of a log names."""

RATE_TASKS = 8
"""The last tasks of a kind, by which its rate now is measured."""

PAUSE = 5.0
"""Seconds without any task of a kind after which its rate is measured anew."""


class Display:
    """Of each kind of task how much is done and how fast; what each worker is doing; and the time left.

    A thread looks how far tasks are and writes the lines of a log: a driver that works in its own process has no time
    for it, and others should not wait for a store that is far.
    """

    def __init__(
        self,
        plan: Plan,
        remaining: RemainingTasks,
        workers: int,
        console: Console,
        folder: RunFolder,
        rates: Rates | None = None,
    ) -> None:
        """folder: where trainings write down how far they are."""
        self.console = console
        self._folder = folder
        self._lock = threading.RLock()
        self._running: dict[int, list[Task]] = {worker: [] for worker in range(workers)}
        self._since: dict[int, float] = {}
        """When a worker began the first of its tasks."""
        self._far: dict[str, tuple[float, HowFar | None]] = {}
        """By task: when it was looked up last, and how far it was."""
        self._start = time.monotonic()
        self._first = Queue(remaining.tasks, remaining.products, workers).take(None)
        """What is done first, until it has been begun: workers take their time to start."""
        seconds = {task.id: task_seconds(task, plan, rates) if rates else None for task in remaining.tasks}
        self.time_left = TimeLeft(remaining.tasks, seconds, workers)
        self._bars = Progress(
            TextColumn("{task.description:>11}"),
            BarColumn(36),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )
        trains = is_campaign(folder) or any(task.kind == TrainingTask.kind for task in remaining.tasks)
        # An evaluation was given its models.
        shown = plan.tasks if trains else [task for task in plan.tasks if task.kind != TrainingTask.kind]
        self._kinds = {task.kind: _Kind(task.unit) for task in shown}
        for task in shown:
            self._kinds[task.kind].total += task.size
        for task in remaining.tasks:
            self._kinds[task.kind].left += task.size
        for name, kind in self._kinds.items():
            done = kind.total - kind.left
            kind.bar = self._bars.add_task(name, total=kind.total, completed=done, rate="")
        self._live = Live(get_renderable=self._view, console=console, refresh_per_second=4, transient=True)
        self._cell: Any = None
        """Of a notebook: where its line is."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="progress")

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        if self.console.is_terminal:
            self._live.stop()
        else:
            self._log()

    def started(self, worker: int, task: Task) -> None:
        with self._lock:
            tasks = self._running.setdefault(worker, [])
            if not tasks:
                self._since[worker] = time.monotonic()
            tasks.append(task)
            self._first = None
            self.time_left.workers = max(self.time_left.workers, len(self._running))
            self._kinds[task.kind].started(time.monotonic())

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        with self._lock:
            now = time.monotonic()
            seconds, self._since[worker] = now - self._since[worker], now
            self._running[worker].remove(task)
            self._far.pop(task.id, None)
            kind = self._kinds[task.kind]
            kind.stopped()
            if outcome.is_done:
                kind.ended(now, task.size)
                self.time_left.ended(task, seconds)
            elif outcome.next in (Next.RETRY, Next.GIVE_UP) and not will_retry:
                self.time_left.given_up(task)
        # Without the lock: to print, rich waits for the thread that draws, and that for the lock.
        if outcome.note:
            self.console.print(rich_text(f"{task.describe()}: {outcome.note}", "yellow"), soft_wrap=True)
        if outcome.next in (Next.RETRY, Next.GIVE_UP):
            ending = "will be tried again" if will_retry else "given up"
            line = Text.assemble((f"{task.describe()}: {ending}", "red"), f": {outcome.reason}")
            self.console.print(line, soft_wrap=True)

    def tick(self) -> None:
        """Nothing: a thread does it."""

    def line(self) -> str:
        """How far the run is, for a log."""
        with self._lock:
            now = time.monotonic()
            parts = [self._describe_kind(name, kind, now) for name, kind in self._kinds.items()]
            running = [self._describe_tasks(tasks) for tasks in self._running.values() if tasks]
            more = f" and {len(running) - MAX_NAMED} more" if len(running) > MAX_NAMED else ""
            if self._first:
                running = [self._starting(self._first)]
            doing = f"; {'; '.join(running[:MAX_NAMED])}{more}" if running else ""
            return f"{', '.join(parts)}, {self._times(now)}{doing}"

    def look(self) -> None:
        """See how far tasks under way are, as many as a second has room for; first those not looked at for longest."""
        now = time.monotonic()
        with self._lock:
            running = [(tasks[0], now - self._since[worker]) for worker, tasks in self._running.items() if tasks]
            seen = {task.id: self._far.get(task.id, (-math.inf, None)) for task, _ in running}
        due = [
            (task, elapsed)
            for task, elapsed in running
            if now - seen[task.id][0] >= (INTERVAL if seen[task.id][1] else FIRST_LINE)
        ]
        for task, elapsed in sorted(due, key=lambda one: seen[one[0].id][0]):
            found = how_far(self._folder, task, elapsed)  # without the lock: the store may be far
            with self._lock:
                if any(task in tasks for tasks in self._running.values()):
                    self._far[task.id] = time.monotonic(), found or seen[task.id][1]
            if time.monotonic() - now >= FIRST_LINE:
                break

    def _counts(self, name: str, kind: "_Kind") -> list[tuple[float, Count]]:
        """Of the tasks of a kind that are under way: when each was begun, and how far it is, in units of the kind."""
        under_way = [
            (self._since[worker], self._far[tasks[0].id][1])
            for worker, tasks in self._running.items()
            if tasks and tasks[0].kind == name and tasks[0].id in self._far
        ]
        return [(since, of) for since, of in under_way if isinstance(of, Count) and of.unit == kind.unit]

    def _state(self, name: str, kind: "_Kind", now: float) -> tuple[int, float]:
        """Units of a kind that are done, and how many a second now; with those of tasks under way."""
        counts = self._counts(name, kind)
        done = kind.total - kind.left + sum(count.done for _, count in counts)
        return min(done, kind.total), kind.rate(now, sum(count.done_after(now - since) for since, count in counts))

    def _describe_kind(self, name: str, kind: "_Kind", now: float) -> str:
        unit = "" if kind.unit == "task" else f" {kind.unit}s"
        done, rate = self._state(name, kind, now)
        return f"{name} {done}/{kind.total}{unit}" + (f" ({rate:.1f}/s)" if rate else "")

    @staticmethod
    def _starting(first: Task) -> str:
        return f"workers are starting, the first task is {first.describe()}"

    def _describe_tasks(self, tasks: list[Task]) -> str:
        """The first of a worker's tasks, how far it is, and how many are done together with it."""
        packed = sum(task.pack_key is not None for task in tasks) - 1
        of = self._far.get(tasks[0].id, (0.0, None))[1]
        far = f", {of.describe()}" if of else ""
        return f"{tasks[0].describe()}{far}" + (f" and {packed} packed with it" if packed > 0 else "")

    def _times(self, now: float) -> str:
        running = [
            UnderWay(tasks[0], now - self._since[worker], self._far.get(tasks[0].id, (0.0, None))[1])
            for worker, tasks in self._running.items()
            if tasks
        ]
        left = self.time_left.seconds(running)
        about = "time left unknown" if left is None else f"about {_clock(left)} left"
        return f"{_clock(now - self._start)} elapsed, {about}"

    def _view(self) -> Group:
        with self._lock:
            now = time.monotonic()
            for name, kind in self._kinds.items():
                done, rate = self._state(name, kind, now)
                self._bars.update(kind.bar, completed=done, rate=f"{rate:.1f} {kind.unit}s/s" if rate else "")
            idle = "starts" if self._first else "waits"
            lines = [Text(f"  {self._starting(self._first)}", style="dim")] if self._first else []
            lines += [
                Text(f"  worker {number}  {self._describe_tasks(tasks) if tasks else idle}", style="dim")
                for number, tasks in sorted(self._running.items())
            ]
            return Group(self._bars, Text(f"  {self._times(now)}"), *lines)

    def _watch(self) -> None:
        next_line = time.monotonic()
        while not self._closed.wait(FIRST_LINE):
            self.look()
            if not self.console.is_terminal and time.monotonic() >= next_line:
                self._log()
                next_line = time.monotonic() + LOG_INTERVAL

    def _log(self) -> None:
        if self.console.is_jupyter:
            self._show_in_notebook(self.line())
        else:
            self.console.print(self.line(), highlight=False, markup=False, soft_wrap=True)

    def _show_in_notebook(self, line: str) -> None:
        """One line that changes, for each would be a box of its own in the page."""
        from IPython.display import display

        shown = {"text/plain": line}
        if self._cell is None:
            self._cell = display(shown, raw=True, display_id=True)
        else:
            self._cell.update(shown, raw=True)


class _Kind:
    """How far the tasks of one kind are, in units."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.total = self.left = 0
        self.bar = TaskID(0)
        self._running = 0
        self._ends: deque[tuple[float, int]] = deque(maxlen=RATE_TASKS)
        """When the last tasks ended, and their units."""
        self._since = 0.0
        """When the units in `_ends` were begun."""

    def started(self, now: float) -> None:
        if not self._running and (not self._ends or now - self._ends[-1][0] > PAUSE):
            # What was done before says nothing of the rate from now on.
            self._ends.clear()
            self._since = now
        self._running += 1

    def ended(self, now: float, units: int) -> None:
        self.left -= units
        if len(self._ends) == RATE_TASKS:
            self._since = self._ends[0][0]
        self._ends.append((now, units))

    def stopped(self) -> None:
        """A task of it is not under way any more."""
        self._running -= 1

    def rate(self, now: float, under_way: float = 0.0) -> float:
        """Units a second by the last tasks, and what is done of those under way; 0 where none is under way."""
        if not self._running:
            return 0.0
        return (sum(units for _, units in self._ends) + under_way) / max(now - self._since, 1e-9)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
