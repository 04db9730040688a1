"""A bar for work that is counted, on a terminal alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from efface.launch.terminal.tables import console
from efface.text import shown


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function that shows what is under way, how many of them are done and how many there are, on stderr.

    The bar is gone when the block ends.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    terminal = console(sys.stderr)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, done: int, count: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(shown(what), total=count)
            progress.update(bars[what], completed=done)

        yield show
