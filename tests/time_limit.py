"""An end to what might never come back: a reader of a pipe, or of a file made to keep it busy."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def time_limit(seconds: int, error: type[Exception] = TimeoutError) -> Iterator[None]:
    """Raises `error` in the main thread once so many seconds are over."""

    def give_up(number: int, frame: object) -> None:
        raise error(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
