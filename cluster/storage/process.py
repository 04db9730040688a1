"""Which process a driver is, and whether it still runs, as far as this process can know."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TypedDict


class Process(TypedDict):
    """A process as a lease has it."""

    host: str
    boot: str
    namespaces: str
    pid: int
    started: str | None


def this_process() -> Process:
    """What tells this process from every other one, on any machine, in any container, at any time."""
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "namespaces": _namespaces(),
        "pid": os.getpid(),
        "started": _start_time("self"),
    }


def describe(process: Process) -> str:
    """For people."""
    return f"a driver on {process['host']} (process {process['pid']})"


def is_alive(process: Process) -> bool | None:
    """Whether a process of `this_process` still runs; None where that cannot be known here.

    The process table is asked only of a process that shares it: the same boot of the same machine, and the same
    namespaces of process ids and clocks.
    """
    me = this_process()
    shared = all(me[name] and process[name] == me[name] for name in ("host", "boot", "namespaces"))
    if not shared:
        return None
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it runs, as another user
    if os.readlink("/proc/self") != str(os.getpid()):
        return None  # this /proc shows other processes
    started = _start_time(str(process["pid"]))
    if started == "gone":
        return False
    return None if started is None else started == process["started"]


def _boot_id() -> str:
    """What tells one boot of a machine from the next; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespaces() -> str:
    """Which process ids, and which count of the ticks since boot, this process sees; empty where unknown."""
    names = []
    with suppress(OSError):
        names.append(os.readlink("/proc/self/ns/pid"))
        names.append(os.readlink("/proc/self/ns/time"))  # since Linux 5.6
    return " ".join(names)


def _start_time(pid: str) -> str | None:
    """Ticks since boot at which a process started, which no change of the clock moves, and which tell it from a later
    one with its number; "gone" of one that has ended and only waits for its parent; None where it cannot be read."""
    try:
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "gone" if state in "ZX" else facts[18]
