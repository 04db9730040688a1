"""How a command ended: what the tests of the command line look at."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class CommandResult:
    """The exit code, and what was printed."""

    code: int
    out: str
    err: str

    @property
    def error_message(self) -> str:
        """What a user's mistake was answered with: exit code 2, and one line on stderr."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert "Traceback" not in self.out + self.err
        assert self.err.startswith("efface: ") and self.err.count("\n") == 1, self.err
        return self.err.removeprefix("efface: ").rstrip("\n")


RunEfface = Callable[..., CommandResult]
"""`efface(*arguments)` runs the command in this process."""
