"""Standard streams that cannot end a command: closed ones, a full disk, a reader that went away.

A lost standard output is reported once on stderr (a reader that went away, as in `efface plan | head -1`, is not worth
a word), and the command goes on without it. Where something could not be written, exit code 0 becomes 1.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class GuardedStream:
    """A text stream whose errors do not reach those who write to it. `error`: the first one, or None."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        with self._guard():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._guard():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def lost_output(self) -> bool:
        """Whether something was not written that somebody may have wanted to read."""
        return self.error is not None and self.error.errno != errno.EPIPE

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            first, self.error = self.error is None, self.error or error
            with suppress(OSError, ValueError):
                _to_null(self._stream.fileno())  # so that what is still buffered can be flushed
            if first and self.lost_output and self._name == "stdout":
                reason = error.strerror or str(error)
                print(f"efface: the output cannot be written ({reason}); going on without it", file=sys.stderr)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """A block in which stdin, stdout and stderr are there and can be written to. An exit in it is passed on."""
    closed = _open_closed_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    stdout = GuardedStream(sys.stdout, "stdout")
    sys.stdout, sys.stderr = stdout, GuardedStream(sys.stderr, "stderr")  # type: ignore[assignment]
    if 1 in closed:
        print("efface: standard output is closed; going on without it", file=sys.stderr)
    try:
        yield
    except SystemExit as end:
        stdout.flush()
        if not end.code and stdout.lost_output:
            sys.exit(1)
        raise
    finally:
        stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> list[int]:
    """Those of 0, 1 and 2 that were closed. Opened as /dev/null, or the next file opened would take their number."""
    closed = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            closed.append(number)
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    return closed


def _to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, descriptor)
    finally:
        os.close(null)
