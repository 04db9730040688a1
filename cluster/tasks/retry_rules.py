"""How a task ended, and what the driver does about it: go on, try it again so often, give it up, or stop.

A worker, or whoever lost it, says how a task ended; `scheduler/dispatch.py` does what the outcome says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_ATTEMPTS = 2
"""How often a task may break before it is given up."""

MAX_WORKER_LOSSES = 8
"""How often a task may be lost with its worker, or with that worker's node, before it is given up."""


class Next(StrEnum):
    """What the driver does about a task that has ended."""

    GO_ON = "go on"
    """It is done: what waited for it may start."""
    RETRY = "retry"
    """Try it again, up to the outcome's number of attempts; then give it up."""
    GIVE_UP = "give up"
    """It cannot be done as requested, and trying again would not help."""
    REDO_INPUT = "redo input"
    """What it builds on has to be made again first, for which there is another round."""
    STOP = "stop"
    """The run is to stop; the task is left for the next start."""
    ABORT = "abort"
    """Results can no longer be written: stop, with the reason as the error."""
    NOTHING = "nothing"
    """Another copy of it was faster."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended, and what to do about it."""

    state: str
    """One of few words, for the journal and metrics."""
    next: Next
    reason: str = ""
    details: str = ""
    attempts: int = 1
    """How often a task may end like this before it is given up."""
    worker_gone: bool = False
    """The worker can take no more tasks; another comes in its place."""
    smaller_batch: bool = False
    """The memory did not suffice, and it was done with a smaller batch."""
    out_of_memory: bool = False
    """The memory did not suffice. In a process group all processes have to reduce their micro-batches together."""
    note: str = ""
    """What should be known of a task that is done: images of it that are no evidence."""

    @property
    def is_done(self) -> bool:
        return self.next is Next.GO_ON

    @classmethod
    def done(cls, smaller_batch: bool = False, note: str = "") -> Outcome:
        return cls("done", Next.GO_ON, smaller_batch=smaller_batch, note=note)

    @classmethod
    def failed(cls, reason: str, details: str = "") -> Outcome:
        """It cannot be done as requested."""
        return cls("failed", Next.GIVE_UP, reason, details)

    @classmethod
    def error(
        cls, reason: str, details: str = "", *, worker_gone: bool = False, out_of_memory: bool = False
    ) -> Outcome:
        """Something broke on the way."""
        return cls(
            "error", Next.RETRY, reason, details, MAX_ATTEMPTS, worker_gone=worker_gone, out_of_memory=out_of_memory
        )

    @classmethod
    def worker_lost(cls, reason: str = "", details: str = "", *, worker_gone: bool = False) -> Outcome:
        """Its worker or node went away, which is not the task's doing."""
        return cls("worker_lost", Next.RETRY, reason, details, MAX_WORKER_LOSSES, worker_gone=worker_gone)

    @classmethod
    def stopped(cls) -> Outcome:
        """Interrupted on request."""
        return cls("stopped", Next.STOP, "stopped on request")

    @classmethod
    def storage(cls, reason: str, details: str = "") -> Outcome:
        """Results cannot be written."""
        return cls("storage", Next.ABORT, reason, details)

    @classmethod
    def damaged(cls, reason: str) -> Outcome:
        """A file it builds on has changed."""
        return cls("damaged", Next.REDO_INPUT, reason)

    @classmethod
    def superseded(cls) -> Outcome:
        """A copy of it was done before."""
        return cls("superseded", Next.NOTHING, "another worker was faster")
