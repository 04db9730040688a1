"""A Ray to work on: joined where one runs, or started on this machine, where it listens on loopback alone."""

import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from efface.errors import UserError


def init_ray(address: str | None, cpus: int, scratch: str) -> None:
    """Join the Ray at `address`, or start one on this machine that listens on loopback alone. Raises UserError."""
    import ray
    from ray._private import ray_constants

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
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
    _ensure_private_token()
    with _keep_signal_handlers():
        ray.init("local", num_cpus=max(os.cpu_count() or 1, cpus), include_dashboard=False, _temp_dir=scratch, **quiet)


def _ensure_private_token() -> None:
    """Write the token of this user's Rays, if there is none: Ray itself would write it for everybody to read."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    file = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # without a home that can be written Ray says what it needs
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent)  # which only its owner can read
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(secrets.token_hex(32))
            os.link(name, file)  # never over one that is there
        finally:
            os.unlink(name)


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """As it starts, Ray takes SIGTERM for itself and would end the process on it: ours are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1].split("UserError: ", 1)[-1]
