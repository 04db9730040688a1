"""Seeing a campaign run: live bars on a terminal, a plain line now and then in a log."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from efface.cluster.campaign.plan import CalibrationTask, Model, Plan, Shard
from efface.cluster.scheduler.dispatch import RemainingTasks
from efface.cluster.storage.run_folder import Task
from efface.cluster.workers.worker import Outcome

LOG_INTERVAL = 15.0
"""Seconds between two lines where there is no terminal."""


class Display:
    """Jobs done, images judged, images a second, time left; and what each worker is doing."""

    def __init__(self, plan: Plan, remaining: RemainingTasks, workers: int, console: Console) -> None:
        self.console = console
        self._running: dict[int, list[Task]] = {worker: [] for worker in range(workers)}
        self._images_left = sum(len(shard.eval_requests) for shard in remaining.shards)
        self._images = 0
        self._start = self._logged = time.monotonic()
        self.failures: list[tuple[Task, Outcome]] = []
        self._bars = Progress(
            TextColumn("{task.description:>7}"),
            BarColumn(36),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        jobs, images = len(plan.jobs), plan.images
        self._jobs_bar = self._bars.add_task("jobs", total=jobs, completed=jobs - len(remaining.jobs), rate="")
        self._images_bar = self._bars.add_task("images", total=images, completed=images - self._images_left, rate="")
        self._live = Live(self._view(), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()
        self._log()

    def started(self, worker: int, task: Task) -> None:
        self._running.setdefault(worker, []).append(task)
        self.tick()

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        self._running[worker].remove(task)
        if outcome.state in ("failed", "error", "worker_lost"):
            self.failures.append((task, outcome))
            ending = "will be tried again" if will_retry else "given up"
            line = Text.assemble((f"{describe(task)}: {ending}", "red"), f": {outcome.reason}")
            self.console.print(line, soft_wrap=True)
        elif outcome.state != "done":
            pass
        elif isinstance(task, Model):
            self._bars.advance(self._jobs_bar)
        elif isinstance(task, Shard):
            self._images += len(task.eval_requests)
            self._bars.advance(self._images_bar, len(task.eval_requests))
            self._bars.update(self._images_bar, rate=f"{self._rate():.1f}/s")

    def tick(self) -> None:
        if self.console.is_terminal:
            self._live.update(self._view())
        elif time.monotonic() - self._logged >= LOG_INTERVAL:
            self._log()

    def _rate(self) -> float:
        return self._images / max(time.monotonic() - self._start, 1e-9)

    def _view(self) -> Group:
        lines = [
            Text(f"  worker {number}  {describe(running[0]) if running else 'waits'}", style="dim")
            for number, running in sorted(self._running.items())
        ]
        return Group(self._bars, *lines)

    def _log(self) -> None:
        if self.console.is_terminal:
            return
        self._logged = time.monotonic()
        jobs, images = self._bars.tasks
        self.console.print(
            f"jobs {jobs.completed:.0f}/{jobs.total:.0f}, images {images.completed:.0f}/{images.total:.0f}, "
            f"{self._rate():.1f} images/s, {self._logged - self._start:.0f} s",
            highlight=False,
        )


def describe(task: Task) -> str:
    """A piece of work in a few words: `training esd: cat`, `judging esd: cat, shard 3`."""
    if isinstance(task, CalibrationTask):
        return f"calibrating judge {task.judge}"
    model = task if isinstance(task, Model) else task.model
    what = f"{model.label}: {', '.join(model.job.concepts)}" if model.job else "the base"
    return f"training {what}" if isinstance(task, Model) else f"judging {what}, shard {task.index}"
