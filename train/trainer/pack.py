"""A pack: jobs trained side by side, whose questions to the networks are answered together.

Every job runs as it does alone, in a thread of its own: its loop, its random numbers, its clipping, its checkpoints. Of
all threads one runs at a time, until its job asks a network or wants gradients. When every job waits, those that ask
alike are answered in one pass: rows for the frozen model as one batch, rows for edited models each through the weights
of its own (`models/stacked_layers.py`), and all losses in one backward pass. So nothing of a method knows that it is
packed, roll-outs and the images made before the first step are batched with the rest, and a job that ends, fails or is
stopped leaves the others to themselves.

Rows do not act on each other, so a packed job computes what it computes alone, but for rounding: a batch of another
size is summed in another order.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from efface.models.attention_backend import AttentionInUse
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.network import sharing_copy
from efface.models.out_of_memory import is_out_of_memory
from efface.train.trainer.engine import accelerate_state, isolated_accelerate_state, set_accelerate_state
from efface.train.trainer.options import Halves, TrainingOptions, convert
from efface.train.trainer.packed_base import EditedDenoiser, PackedBase, PackedDenoiser, StackedDenoiser

Result = TypeVar("Result")

MOST_ROWS = 256
"""Rows of one pass without gradient; more make it no faster, and take memory."""


class Kind(IntEnum):
    """What a job waits for. Of several, the lowest is answered first, so that jobs meet again at their losses."""

    EDITED = 0
    """A prediction of its own edited model without gradient: a step of a roll-out."""
    FROZEN = 1
    """A prediction of the frozen model."""
    TRAINED = 2
    """A prediction of its own edited model that a loss is made of."""
    BACKWARD = 3
    """The gradient of its loss."""
    TURN = 4
    """Something that one job at a time may do, and another does."""


@dataclass(eq=False)
class Call:
    """A question of one job, and its answer."""

    kind: Kind
    key: Any
    """Calls of one kind and key can be answered together."""
    rows: int = 1
    denoiser: PackedDenoiser | None = None
    latents: Any = None
    timestep: Any = None
    conditioning: Any = None
    loss: Any = None
    answer: Any = None
    error: Exception | None = None


class Ended(BaseException):
    """What a job's thread ends with where the whole pack is given up; no handler of errors should catch it."""


class Member:
    """A job's side of a pack."""

    def __init__(self, pack: "Pack[Any]") -> None:
        self.pack = pack
        self.base = PackedBase.of(pack.base, self)
        self.call: Call | None = None
        self.result: Any = None
        self.failure: BaseException | None = None
        self.running = self.done = False
        self.trains = False
        """Whether its loop has begun: what comes before is computed as the base is, whatever precision is asked for."""
        self.thread: threading.Thread | None = None
        self._turn = threading.Semaphore(0)
        self._seconds = 0.0
        self._since: float | None = None

    @contextmanager
    def training(self) -> Iterator[AttentionInUse | None]:
        """Around the loop; gives what `set_attention` reports of the networks of the pack."""
        self.trains = True
        try:
            yield self.pack.attention
        finally:
            self.trains = False

    def predict(
        self, denoiser: PackedDenoiser, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning
    ) -> Tensor:
        """A network's prediction, made in one pass with what the other jobs ask of theirs."""
        kind = Kind.FROZEN
        if isinstance(denoiser, EditedDenoiser):
            if not self.trains:
                return denoiser.denoiser(latents, timestep, conditioning)
            kind = Kind.TRAINED if torch.is_grad_enabled() else Kind.EDITED
        timesteps = torch.as_tensor(timestep, device=latents.device).expand(len(latents))
        added = tuple((name, tensor.shape[1:]) for name, tensor in sorted(conditioning.added.items()))
        shape = (latents.shape[1:], latents.dtype, timesteps.dtype, conditioning.encoder_hidden_states.shape[1:], added)
        rows = len(latents)
        key = (shape, self.trains if kind is Kind.FROZEN else rows)
        call = Call(kind, key, rows, denoiser, latents, timesteps, conditioning)
        answer: Tensor = self._ask(call)
        return answer

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to the trained tensors' `grad`."""
        self._ask(Call(Kind.BACKWARD, None, loss=loss))

    @contextmanager
    def in_turn(self, key: str) -> Iterator[None]:
        """What only one job of the pack does at a time; the next one finds what the first has left."""
        while key in self.pack.held:
            self._ask(Call(Kind.TURN, key))
        self.pack.held.add(key)
        try:
            yield
        finally:
            self.pack.held.discard(key)

    def clock(self) -> float:
        """Seconds that went into this job: of its own, and its share of what was done for several."""
        return self._seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def add_seconds(self, seconds: float) -> None:
        self._seconds += seconds

    def start(self, work: "Callable[[Member], Any]") -> None:
        def run() -> None:
            self._turn.acquire()
            try:
                if not self.pack.given_up:
                    self.result = work(self)
            except BaseException as error:
                self.failure = error
            finally:
                self.done = True
                self.pack.waiting.release()

        self.thread = threading.Thread(target=run, name="packed job", daemon=True)
        self.thread.start()

    def resume(self) -> None:
        """Let the job run until it asks something, or ends; called by the pack."""
        self.running, self._since = True, time.perf_counter()
        self._turn.release()
        self.wait()

    def wait(self) -> None:
        """Until the job asks something, or ends."""
        self.pack.waiting.acquire()
        self._seconds, self._since, self.running = self.clock(), None, False

    def _ask(self, call: Call) -> Any:
        self.call, state = call, accelerate_state()
        self.pack.waiting.release()
        self._turn.acquire()
        self.call = None
        if self.pack.given_up:
            raise Ended
        set_accelerate_state(state)
        if call.error is not None:
            raise call.error
        return call.answer


class Pack(Generic[Result]):
    """Runs jobs of one base side by side; see above."""

    def __init__(
        self, base: Base, options: TrainingOptions | None = None, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        """options, precision: of all jobs. The base is unedited, and left as it was, bit for bit."""
        self.base, self.options, self.precision = base, options or TrainingOptions(), precision
        self.teacher = base.denoiser.wrapped(sharing_copy(base.denoiser.module))
        self.halves: Halves = {}
        self.attention = convert(self.teacher, self.options, precision, halves=self.halves)
        self.held: set[str] = set()
        self.waiting = threading.Semaphore(0)
        """Released by a job that stops running."""
        self.given_up = False
        self._most_trained: int | None = None
        """How many jobs' losses fit into memory, once more have not."""
        self._stacked: StackedDenoiser | None = None

    def run(self, works: Sequence[Callable[[Member], Result]]) -> list[Result]:
        """What each of them returns, in order.

        Each is called with its `Member`, in a thread of its own, and works on `member.base`. An exception of one does
        not disturb the others; once all have ended, the first one's is raised.
        """
        members = [Member(self) for _ in works]
        for member, work in zip(members, works, strict=True):
            member.start(work)
        with isolated_accelerate_state():
            try:
                self._run(members)
            finally:
                self._end(members)
        failures = [member.failure for member in members if member.failure is not None]
        if failures:
            raise failures[0]
        return [member.result for member in members]

    def _run(self, members: Sequence[Member]) -> None:
        ready = list(members)
        while ready:
            for member in ready:
                member.resume()
            asking = [member for member in members if member.call is not None]
            ready = [m for m in asking if m.call and m.call.kind is Kind.TURN and m.call.key not in self.held][:1]
            if asking and not ready:
                ready = self._chosen(asking)
                self._answer(ready)

    def _chosen(self, asking: Sequence[Member]) -> list[Member]:
        """Those that are answered next, in one pass."""
        kinds = {member.call.kind for member in asking if member.call}
        kind = min(kinds)
        if kind is Kind.TRAINED and self._most_trained is not None and Kind.BACKWARD in kinds:
            kind = Kind.BACKWARD  # what is kept for it goes first
        groups: dict[Any, list[Member]] = {}
        for member in asking:
            if member.call and member.call.kind is kind:
                groups.setdefault(member.call.key, []).append(member)
        group = max(groups.values(), key=len)
        if kind is Kind.TRAINED:
            return group[: self._most_trained]
        if kind is Kind.BACKWARD:
            return group
        rows, fitting = 0, 0
        for member in group:
            assert member.call
            rows += member.call.rows
            fitting += rows <= MOST_ROWS
        return group[: max(1, fitting)]

    def _answer(self, members: list[Member]) -> None:
        """Give all of them their answers; of losses that do not fit into memory together those of fewer.

        What fails for several is tried again for fewer, in the end for each alone.
        """
        start = time.perf_counter()
        calls = [member.call for member in members if member.call]
        kind, half = calls[0].kind, len(calls) // 2
        try:
            self._compute(calls)
        except Exception as error:
            if half == 0 or kind is Kind.BACKWARD:  # a second time there would be nothing to go back through
                for call in calls:
                    call.error = error
                return
            error.__traceback__ = None  # it holds on to tensors
            if kind is Kind.TRAINED and is_out_of_memory(error):
                self._most_trained = half
                del members[half:]
                self._answer(members)
                return
            self._answer(members[:half])
            self._answer(members[half:])
            return
        seconds, rows = time.perf_counter() - start, sum(call.rows for call in calls)
        for member, call in zip(members, calls, strict=True):
            member.add_seconds(seconds * call.rows / rows)

    def _compute(self, calls: Sequence[Call]) -> None:
        if calls[0].kind is Kind.BACKWARD:
            torch.autograd.backward([call.loss for call in calls])
            return
        latents, timesteps = torch.cat([call.latents for call in calls]), torch.cat([call.timestep for call in calls])
        conditioning = Conditioning.cat([call.conditioning for call in calls])
        with torch.set_grad_enabled(calls[0].kind is Kind.TRAINED):
            if calls[0].kind is Kind.FROZEN:
                frozen = self.teacher if calls[0].key[-1] else self.base.denoiser
                predicted = frozen(latents, timesteps, conditioning)
            else:
                edited = [call.denoiser for call in calls if isinstance(call.denoiser, EditedDenoiser)]
                predicted = self._stacked_denoiser(edited[0]).predict(edited, latents, timesteps, conditioning)
        for call, answer in zip(calls, predicted.split([call.rows for call in calls]), strict=True):
            call.answer = answer

    def _stacked_denoiser(self, one: EditedDenoiser) -> StackedDenoiser:
        if self._stacked is None:
            self._stacked = StackedDenoiser(one, self.options, self.precision, self.halves)
        return self._stacked

    def _end(self, members: Sequence[Member]) -> None:
        """End the threads of what has not ended, after an interruption."""
        self.given_up = True
        for member in members:
            if member.running:
                member.wait()
            while not member.done:
                member.resume()
