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

from efface.cluster.dispatch import Remaining
from efface.cluster.plan import Calibration, Model, Plan, Shard
from efface.cluster.run_folder import Work
from efface.cluster.worker import Outcome

LOG_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


class Display:
    """Jobs done, images judged, images a second, time left; and what each worker is doing."""

    def __init__(self, plan: Plan, left: Remaining, workers: int, console: Console) -> None:
        self.console = console
        self._doing: dict[int, list[Work]] = {worker: [] for worker in range(workers)}
        self._images_left = sum(len(shard.questions) for shard in left.shards)
        self._images = 0
        self._start = self._logged = time.monotonic()
        self.failures: list[tuple[Work, Outcome]] = []
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
        self._jobs_bar = self._bars.add_task("jobs", total=jobs, completed=jobs - len(left.jobs), rate="")
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

    def started(self, worker: int, work: Work) -> None:
        self._doing.setdefault(worker, []).append(work)
        self.tick()

    def ended(self, worker: int, work: Work, outcome: Outcome, again: bool) -> None:
        self._doing[worker].remove(work)
        if outcome.state in ("failed", "fault", "lost"):
            self.failures.append((work, outcome))
            ending = "will be tried again" if again else "given up"
            line = Text.assemble((f"{describe(work)}: {ending}", "red"), f": {outcome.reason}")
            self.console.print(line, soft_wrap=True)
        elif outcome.state != "done":
            pass
        elif isinstance(work, Model):
            self._bars.advance(self._jobs_bar)
        elif isinstance(work, Shard):
            self._images += len(work.questions)
            self._bars.advance(self._images_bar, len(work.questions))
            self._bars.update(self._images_bar, rate=f"{self._rate():.1f}/s")

    def tick(self) -> None:
        if self.console.is_terminal:
            self._live.update(self._view())
        elif time.monotonic() - self._logged >= LOG_EVERY:
            self._log()

    def _rate(self) -> float:
        return self._images / max(time.monotonic() - self._start, 1e-9)

    def _view(self) -> Group:
        lines = [
            Text(f"  worker {number}  {describe(doing[0]) if doing else 'waits'}", style="dim")
            for number, doing in sorted(self._doing.items())
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


def describe(work: Work) -> str:
    """A piece of work in a few words: `training esd: cat`, `judging esd: cat, shard 3`."""
    if isinstance(work, Calibration):
        return f"calibrating judge {work.judge}"
    model = work if isinstance(work, Model) else work.model
    what = f"{model.label}: {', '.join(model.job.concepts)}" if model.job else "the base"
    return f"training {what}" if isinstance(work, Model) else f"judging {what}, shard {work.index}"
