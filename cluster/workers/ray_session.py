"""A Ray to work on: joined where one runs, or started on this machine, where it listens on loopback alone."""

import os
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efface.cluster.signals import STOP_SIGNALS
from efface.cluster.workers.ray_probe import answers, endpoint
from efface.cluster.workers.ray_token import protect_token
from efface.errors import TryAgain, UserError

MAX_SCRATCH_PATH = 32
"""Characters of the folder for Ray's files: below it come some 70, and the path of a socket has at most 107."""

MAX_REASON = 120
"""Characters of Ray's own message."""


def init_ray(address: str | None, cpus: int, scratch: str) -> None:
    """Join the Ray at `address`, or start one on this machine that listens on loopback alone. Raises UserError,
    and TryAgain where it does not come up.

    scratch: of `ray_scratch`.
    """
    import ray
    from ray._private import ray_constants

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
            # Where nobody answers, Ray itself tries for ten minutes, in which it heeds no signal.
            found = endpoint(address)
            if found and not answers(*found):
                raise ConnectionError(f"no Ray answers at {found[0]}:{found[1]}")
            with _keep_signal_handlers():
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise UserError(f"no Ray cluster can be joined at '{address}': {last_line(str(error))}") from None
        return
    # Made for other systems, this keeps Ray's processes on the loopback address. Ray itself reads it when it is
    # imported, which may have been earlier.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Ray's own 15 would have workers wait for all else on the machine, also for the driver, which only waits for them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray_constants.ENABLE_RAY_CLUSTER = False
    protect_token()
    folder = str(Path(scratch, "ray"))  # Ray opens its own folder to everybody: the one above stays closed
    try:
        with _keep_signal_handlers():
            ray.init(
                "local", num_cpus=max(os.cpu_count() or 1, cpus), include_dashboard=False, _temp_dir=folder, **quiet
            )
    except Exception as error:  # Ray raises this very class where its processes are not up in time
        ray.shutdown()  # what has come up of it would stay
        raise TryAgain(
            f"Ray did not start on this machine, which may be too busy or short of memory ({_first_line(error)}); run "
            "the same command again, or with --workers 0, which does without Ray"
        ) from None


def ray_scratch() -> "tempfile.TemporaryDirectory[str]":
    """A new folder for the files and sockets of a Ray, which this user alone may enter. Raises UserError.

    It is in the temporary folder of this machine, or in a usual one where that has a long path, or keeps no
    permissions.
    """
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        try:
            mode = os.stat(parent).st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                continue  # others might put another folder in its place
            scratch = tempfile.TemporaryDirectory(prefix="efface-", dir=parent, ignore_cleanup_errors=True)
        except OSError:
            continue
        made = os.stat(scratch.name)
        if len(scratch.name) <= MAX_SCRATCH_PATH and (made.st_uid, made.st_mode & 0o777) == (os.geteuid(), 0o700):
            return scratch
        scratch.cleanup()
    raise UserError(
        f"TMPDIR: {tempfile.gettempdir()} and /tmp cannot hold Ray's sockets; it should be a folder with a short path, "
        "on a file system that keeps permissions"
    )


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """As it starts, Ray takes SIGTERM for itself and would end the process on it: ours are put back."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _first_line(error: Exception) -> str:
    """What went wrong, in few words."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}…"


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1].split("UserError: ", 1)[-1]
