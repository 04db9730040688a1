"""What disturbs a process from within: a kill between two of its writes, a clock that jumps.

Both are laid over the calls of the operating system in this process alone. Light to import, as every Ray worker does.
"""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any

WRITES = ("replace", "link", "fsync", "unlink", "mkdir")
"""Calls of `os` between which a process may be killed: everything that changes what lies in a folder."""

YEARS = 10 * 365 * 24 * 3600.0


def kill_at_write(last: int | None, once: str | None = None) -> Callable[[], int]:
    """Kill this process in place of its write number `last` (1, …). The function counts the writes so far.

    once: a file that is made by the first process killed so, and keeps others alive.
    """
    count = itertools.count(1)
    made = [0]

    def counted(really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            made[0] = next(count)
            if made[0] == last and _first(once):
                os.kill(os.getpid(), signal.SIGKILL)
            return really(*args, **named)

        return call

    for name in WRITES:
        setattr(os, name, counted(getattr(os, name)))
    return lambda: made[0]


def _first(once: str | None) -> bool:
    if once is None:
        return True
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def jumping_clock(seed: int) -> None:
    """From now on the time of day of this process jumps, and with it the times of the files that it writes."""
    generator, real, replace = random.Random(seed), time.time, os.replace
    offset = [0.0]

    def jumped() -> float:
        if generator.random() < 0.2:
            offset[0] = generator.uniform(-YEARS, YEARS)
        return real() + offset[0]

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(jumped(), tz)

    def replaced(source: Any, target: Any) -> None:
        os.utime(source, (jumped(), jumped()))
        replace(source, target)

    from efface.cluster.storage import journal

    time.time = jumped
    journal.datetime = Jumping  # type: ignore[misc]
    os.replace = replaced  # type: ignore[assignment]
