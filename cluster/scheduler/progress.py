"""Seeing a campaign run: live bars on a terminal, a plain line now and then in a log."""

import threading
import time
from collections import deque
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import Rates, task_seconds
from efface.cluster.scheduler.time_left import TimeLeft
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.retry_rules import Next, Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.workers.worker import last_step
from efface.errors import StorageError
from efface.text import rich_text

LOG_INTERVAL = 15.0
"""Seconds between two lines where there is no terminal."""

FIRST_LINE = 1.0
"""Seconds after which a log says what is done."""

STEP_INTERVAL = 5.0
"""Seconds between two looks at how far a training is; workers write it down every 10. Until a step is known: 1."""

RATE_TASKS = 8
"""The last tasks of a kind, by which its rate now is measured."""

PAUSE = 5.0
"""Seconds without any task of a kind after which its rate is measured anew."""


class Display:
    """Of each kind of task how much is done and how fast; what each worker is doing; and the time left.

    Lines of a log come from a thread, for a driver that works in its own process has no time for them.
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
        self._steps: dict[str, tuple[float, str]] = {}
        """By task: when its log was read last, and the step there."""
        self._start = time.monotonic()
        self.failures: list[tuple[Task, Outcome]] = []
        seconds = {task.id: task_seconds(task, plan, rates) if rates else None for task in remaining.tasks}
        self.time_left = TimeLeft(remaining.tasks, seconds, workers)
        self._bars = Progress(
            TextColumn("{task.description:>11}"),
            BarColumn(36),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )
        self._kinds = {task.kind: _Kind(task.unit) for task in plan.tasks}
        for task in plan.tasks:
            self._kinds[task.kind].total += task.size
        for task in remaining.tasks:
            self._kinds[task.kind].left += task.size
        for name, kind in self._kinds.items():
            done = kind.total - kind.left
            kind.bar = self._bars.add_task(name, total=kind.total, completed=done, rate="")
        self._live = Live(get_renderable=self._view, console=console, refresh_per_second=4, transient=True)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._log_regularly, daemon=True, name="progress")

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._live.start()
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self.console.is_terminal:
            self._live.stop()
        else:
            self._thread.join()
            self._log()

    def started(self, worker: int, task: Task) -> None:
        with self._lock:
            tasks = self._running.setdefault(worker, [])
            if not tasks:
                self._since[worker] = time.monotonic()
            tasks.append(task)
            self.time_left.workers = max(self.time_left.workers, len(self._running))
            self._kinds[task.kind].started(time.monotonic())

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        with self._lock:
            now = time.monotonic()
            seconds, self._since[worker] = now - self._since[worker], now
            self._running[worker].remove(task)
            self._steps.pop(task.id, None)
            kind = self._kinds[task.kind]
            kind.stopped()
            if outcome.is_done:
                kind.ended(now, task.size)
                self.time_left.ended(task, seconds)
                self._bars.update(kind.bar, completed=kind.total - kind.left)
            elif outcome.next in (Next.RETRY, Next.GIVE_UP) and not will_retry:
                self.time_left.given_up(task)
        # Without the lock: to print, rich waits for the thread that draws, and that for the lock.
        if outcome.note:
            self.console.print(rich_text(f"{task.describe()}: {outcome.note}", "yellow"), soft_wrap=True)
        if outcome.next in (Next.RETRY, Next.GIVE_UP):
            self.failures.append((task, outcome))
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
            more = f" and {len(running) - 3} more" if len(running) > 3 else ""
            doing = f"; {'; '.join(running[:3])}{more}" if running else ""
            return f"{', '.join(parts)}, {self._times(now)}{doing}"

    def _describe_kind(self, name: str, kind: "_Kind", now: float) -> str:
        unit = "" if kind.unit == "task" else f" {kind.unit}s"
        rate = kind.rate(now)
        return f"{name} {kind.total - kind.left}/{kind.total}{unit}" + (f" ({rate:.1f}/s)" if rate else "")

    def _describe_tasks(self, tasks: list[Task]) -> str:
        """The first of a worker's tasks, and how many are done together with it."""
        packed = sum(task.pack_key is not None for task in tasks) - 1
        return self._describe_task(tasks[0]) + (f" and {packed} packed with it" if packed > 0 else "")

    def _describe_task(self, task: Task) -> str:
        """With the step that it is at, where it has steps."""
        read, step = self._steps.get(task.id, (0.0, ""))
        if task.log and time.monotonic() - read >= (STEP_INTERVAL if step else FIRST_LINE):
            step = self._read_step(task) or step
            self._steps[task.id] = (time.monotonic(), step)
        return f"{task.describe()}{step}"

    def _read_step(self, task: Task) -> str:
        path = self._folder.task_log(task)
        try:
            found = last_step(path.read_text(errors="replace")) if path else None
        except (OSError, StorageError):  # not written yet, or out of reach
            return ""
        return f", step {found.step} of {found.steps}, loss {found.loss:.3g}" if found else ""

    def _times(self, now: float) -> str:
        running = [(task, now - self._since[w]) for w, tasks in self._running.items() for task in tasks[:1]]
        left = self.time_left.seconds(running)
        about = "time left unknown" if left is None else f"about {_clock(left)} left"
        return f"{_clock(now - self._start)} elapsed, {about}"

    def _view(self) -> Group:
        with self._lock:
            now = time.monotonic()
            for kind in self._kinds.values():
                rate = kind.rate(now)
                self._bars.update(kind.bar, rate=f"{rate:.1f} {kind.unit}s/s" if rate else "")
            lines = [
                Text(f"  worker {number}  {self._describe_tasks(tasks) if tasks else 'waits'}", style="dim")
                for number, tasks in sorted(self._running.items())
            ]
            return Group(self._bars, Text(f"  {self._times(now)}"), *lines)

    def _log_regularly(self) -> None:
        wait = FIRST_LINE
        while not self._closed.wait(wait):
            self._log()
            wait = LOG_INTERVAL

    def _log(self) -> None:
        self.console.print(self.line(), highlight=False, markup=False, soft_wrap=True)


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

    def rate(self, now: float) -> float:
        """Units a second by the last tasks; 0 where none is under way, or none has ended."""
        if not self._running or not self._ends:
            return 0.0
        return sum(units for _, units in self._ends) / max(now - self._since, 1e-9)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
