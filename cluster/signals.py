"""Signals that ask a run to stop: work is saved, and only a second one interrupts it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; what `kill` and batch systems send; a terminal that is closed."""


@contextmanager
def stop_signals(console: Console) -> Iterator[list[int]]:
    """The signals that came in the block: the first is kept in the list, a second one interrupts at once.

    A closed terminal may send its signal several times, and beside SIGTERM, so it never counts as the second. Signals
    that are ignored when the block begins, as under `nohup`, stay ignored.
    """
    signals: list[int] = []

    def handle_signal(number: int, frame: object) -> None:
        if number != signal.SIGHUP and any(earlier != signal.SIGHUP for earlier in signals):
            raise KeyboardInterrupt
        signals.append(number)
        if len(signals) == 1:
            with suppress(Exception):  # the terminal may be gone, or be written to just now
                console.print("Stopping: running work is saved or finished; press Ctrl-C again to stop at once.")

    if threading.current_thread() is not threading.main_thread():
        yield signals  # only the main thread receives signals
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    heeded = [number for number in STOP_SIGNALS if number == signal.SIGTERM or before[number] is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, handle_signal)
    try:
        yield signals
    finally:
        for number in heeded:
            signal.signal(number, before[number])
