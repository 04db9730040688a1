"""What can go wrong: a user's mistake, a place that fails, a job that fails on its own; and what was laid down."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake, told in one sentence: what is wrong, where, and what would be right. Exit code 2."""


class StorageError(UserError):
    """A place that cannot be read or written: a full disk, a folder without rights, a store out of reach."""


class Stopped(Exception):
    """Work that was laid down on request; the same command takes it up again. Exit code 130."""


class JobFailure(Exception):
    """A job that cannot be finished (a NaN loss, say): the step and the likely cause. The other jobs go on."""


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
