"""Progress that people can read: a bar on a terminal, a line now and then in a log file."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
console = Console()
LINE_EVERY_SECONDS = 20.0


class Meter:
    """Shows how far a stage is: `with Meter("vae", 3000) as meter: meter.at(step, "loss 0.1")`."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self.started = self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total, note="")

    def __enter__(self) -> "Meter":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total are finished."""
        self.bar.update(self.task, completed=done, note=note)
        now = time.monotonic()
        if not console.is_terminal and (now - self.last_line > LINE_EVERY_SECONDS or done == self.total):
            self.last_line = now
            print(f"{self.title}: {done}/{self.total}  {now - self.started:.0f} s  {note}", flush=True)


def track(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """The items, with progress."""
    with Meter(title, total) as meter:
        for number, item in enumerate(items, start=1):
            yield item
            meter.update(number)
