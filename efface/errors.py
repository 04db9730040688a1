"""What can go wrong: a user's mistake, a store that fails, a job that fails on its own; and work that was stopped.

Each class names the exit code that the command line ends with.
"""

import difflib
from collections.abc import Iterable

from efface.text import shown


class Message(Exception):
    """An error that is one sentence for people. What it quotes of a file is shown, and acts on no terminal or log."""

    def __init__(self, sentence: str = "") -> None:
        super().__init__(shown(sentence))


class UserError(Message):
    """A user's mistake, described in one sentence: what is wrong, where, and what would be right."""

    exit_code = 2


class TryAgain(UserError):
    """What cannot be done now. The same command may be run again later, which batch systems do by themselves on this
    exit code (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


class StorageError(TryAgain):
    """A disk or store that cannot be read or written now: it is full, or out of reach."""


class NoSpaceError(StorageError):
    """A disk that is full, or a quota that is used up."""


class LocationError(StorageError):
    """A path or URL that cannot hold what it should, now or later: a file in place of a folder, no permission, an
    unknown scheme."""

    exit_code = 2


class Stopped(Message):
    """Work that was stopped on request; the same command goes on from there."""

    exit_code = 130


class JobFailure(Message):
    """A job that cannot be finished (a NaN loss, say): the step and the likely cause. The other jobs go on."""

    exit_code = 1


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of a sentence about an unknown `word`: the nearest of `choices`, or all of them where few."""
    known = sorted(choices)
    folded = {choice.casefold(): choice for choice in known}
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{folded[near[0]]}'?"
    if len(known) > 12:
        return f"known are {', '.join(known[:12])} and {len(known) - 12} more"
    return f"known are {', '.join(known)}" if known else "none is known"
