"""What a task says while it runs, as the text of its log: efface's log records, and the warnings of libraries.

Tasks that run side by side, each in a thread of its own, have a log each.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

LOGGERS = ("efface", "py.warnings")

_open: list[logging.Handler] = []
"""The handlers of the blocks under way."""

_restoring = ExitStack()
"""What puts the loggers back as they were before the first of them."""


@contextmanager
def log_to(stream: TextIO) -> Iterator[None]:
    """A block in which this thread's log records of `efface`, from INFO on, and of Python's warnings go to `stream`
    alone."""
    handler, thread = logging.StreamHandler(stream), threading.get_ident()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: record.thread == thread)
    if not _open:
        _capture()
    _open.append(handler)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        _open.remove(handler)
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)
        if not _open:
            _restoring.close()


def _capture() -> None:
    logging.captureWarnings(True)
    _restoring.callback(logging.captureWarnings, False)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        _restoring.callback(_restore, logger, logger.handlers, logger.level, logger.propagate)
        logger.handlers, logger.propagate = [], False
        logger.setLevel(logging.INFO)


def _restore(logger: logging.Logger, handlers: list[logging.Handler], level: int, propagate: bool) -> None:
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
