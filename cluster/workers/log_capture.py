"""What a task says while it runs, as the text of its log: efface's log records, and the warnings of libraries."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def log_to(stream: TextIO) -> Iterator[None]:
    """A block in which log records of `efface`, from INFO on, and of Python's warnings go to `stream` alone."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger("efface"), logging.getLogger("py.warnings")]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
