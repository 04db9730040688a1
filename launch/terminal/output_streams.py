"""Standard output and error, which may break while a command works: a closed pipe or terminal, a full disk of logs."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast


class TolerantStream:
    """A text stream that loses what cannot be written, and remembers why, in place of failing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: Exception | None = None
        self.is_result = True
        """Whether the command is for what it writes here; else its results are in files."""

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def close_if_broken(self) -> None:
        """Keep the interpreter from failing at what is still buffered, as it ends."""
        self.flush()
        if self.error:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def _attempt(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (OSError, ValueError) as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def results_are_in_files() -> TextIO:
    """Standard output, for a command that goes on and succeeds whatever becomes of it."""
    if isinstance(sys.stdout, TolerantStream):
        sys.stdout.is_result = False
    return sys.stdout


def with_output(command: Callable[[], int]) -> tuple[int, str | None]:
    """The exit code of a command, and the error where it is a failure that its output was lost."""
    output, errors = TolerantStream(sys.stdout), TolerantStream(sys.stderr)
    with redirect_stdout(cast(TextIO, output)), redirect_stderr(cast(TextIO, errors)):
        code = command()
    output.close_if_broken()
    errors.close_if_broken()
    if not output.error or not output.is_result or code:
        return code, None
    if getattr(output.error, "errno", None) == errno.EPIPE:
        return 1, None  # the reader has seen enough
    return 1, f"the output cannot be written ({getattr(output.error, 'strerror', None) or output.error})"
