"""Calls to stores and network file systems, which fail now and then: tried again for a while, with growing delays."""

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from efface.errors import UserError

T = TypeVar("T")

RETRY_SECONDS = 30.0
"""How long one call may go on failing before its error is raised."""

FIRST_DELAY, MAX_DELAY = 0.5, 8.0
"""Seconds between two attempts."""

PERMANENT = (UserError, PermissionError, ValueError, TypeError, AttributeError, ImportError, NotImplementedError)
PERMANENT_OF_CLIENTS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
"""Errors by which no later attempt succeeds; those of the stores' own clients by name."""

TRANSIENT_CODES = {
    errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.ENETDOWN, errno.EAGAIN, errno.ECONNRESET,
}  # fmt: skip
"""What a network file system answers while its server is away."""

_seconds: ContextVar[float | None] = ContextVar("retry_seconds", default=None)
_log = logging.getLogger("efface")


@contextmanager
def retry_seconds(seconds: float) -> Iterator[None]:
    """A block whose calls are tried again for so long, in this thread."""
    token = _seconds.set(seconds)
    try:
        yield
    finally:
        _seconds.reset(token)


def retry(location: object, call: Callable[[], T], is_transient: Callable[[Exception], bool]) -> T:
    """What `call` returns, once it succeeds. Raises what it raises, if that is not transient or lasts too long.

    location: what is read or written, for the log.
    """
    budget = _seconds.get()
    deadline = time.monotonic() + (RETRY_SECONDS if budget is None else budget)
    delay = FIRST_DELAY
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + delay > deadline:
                raise
            _log.warning("%s: %s; trying again in %.1f s", location, first_line(error), delay)
        time.sleep(delay * random.uniform(0.8, 1.0))  # not all workers at the same moment
        delay = min(2 * delay, MAX_DELAY)


def is_transient_in_store(error: Exception) -> bool:
    """Whether a later call to an object store may succeed where this one failed."""
    return not isinstance(error, PERMANENT) and type(error).__name__ not in PERMANENT_OF_CLIENTS


def is_transient_on_disk(error: Exception) -> bool:
    """The same of a file system."""
    return isinstance(error, OSError) and error.errno in TRANSIENT_CODES


def first_line(error: Exception) -> str:
    """An error in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
