"""The retry rules: what an error of a task means, and whether the task is tried again, given up, or ends the run.

    what happened                                    then
    the memory did not suffice                       once more on the spot, in batches of half the size
    its worker died or a call broke, any other error again, until it has ended so MAX_ATTEMPTS times
    its node went away, or was out of reach          again, until that happened MAX_WORKER_LOSSES times
    it cannot be done as requested (UserError, …)    given up
    a file it builds on has changed                  that is made again first
    results cannot be written                        the run ends, and nothing is given up
    a stop was requested                             left for the next start

A worker, or whoever lost it, makes the outcome here; `scheduler/dispatch.py` does what it says. Calls to storage are
tried again below all this (`efface/storage_retry.py`); `efface retry` clears what was given up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from efface.cluster.tasks.task import DamagedInput, Task
from efface.errors import JobFailure, Stopped, StorageError, UserError

if TYPE_CHECKING:
    from ray.exceptions import RayActorError

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


class Attempts:
    """How often tasks have ended without being done."""

    def __init__(self) -> None:
        self._ended: Counter[tuple[str, str]] = Counter()
        """By the task's id and the outcome's state, for each state has a limit of its own."""

    def will_retry(self, task: Task, outcome: Outcome) -> bool:
        """Count an outcome; whether the task is to be done again after it."""
        if outcome.next is not Next.RETRY:
            return outcome.next is Next.REDO_INPUT
        self._ended[task.id, outcome.state] += 1
        return self._ended[task.id, outcome.state] < outcome.attempts


def outcome_of_error(error: Exception, log: str, trace: str) -> Outcome:
    """What an error that a task raised means.

    log: what the task had logged; trace: the error's traceback.
    """
    match error:
        case Stopped():
            return Outcome.stopped()
        case DamagedInput():
            return Outcome.damaged(str(error))
        case StorageError():
            return Outcome.storage(str(error), log)
        case JobFailure() | UserError():
            return Outcome.failed(str(error), log + trace)
        case _:
            from efface.models.out_of_memory import is_out_of_memory

            reason = f"{type(error).__name__}: {error}"
            return Outcome.error(reason, log + trace, out_of_memory=is_out_of_memory(error))


def outcome_of_death(error: RayActorError, who: str, *, shared: bool = False) -> Outcome:
    """What the death of a process that did a task means; `who`: "the worker".

    shared: it did several together, and nobody knows which of them it died of.
    """
    lost = Outcome.worker_lost if shared or is_node_failure(error) else Outcome.error
    return lost(f"{who} died", str(error))


def is_node_failure(error: Any) -> bool:
    """Whether an actor is gone with its node, or out of reach, and did not die of what it was doing."""
    from ray.exceptions import ActorUnavailableError

    # Of a worker that died alone Ray tells too, among its advice, of "node deaths".
    with_its_node = error.preempted or "because its node has died" in str(error)
    return with_its_node or isinstance(error, ActorUnavailableError)
