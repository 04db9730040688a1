"""A bar for work that is counted, on a terminal alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from efface.launch.terminal.tables import console
from efface.text import shown


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yields `show(what, done, total)`, which draws a bar on stderr; it is gone when the block ends."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    terminal = console(sys.stderr)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(shown(what), total=total)
            progress.update(bars[what], completed=done)

        yield show
