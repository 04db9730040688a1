"""Where work runs: in this process, or in Ray actors. Both hold `Worker`s and answer in the same words."""

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, Protocol

from efface.cluster.gang import Leader, TrainLeader, not_its_fault
from efface.cluster.run_folder import Work
from efface.cluster.stand_in import StandIn
from efface.cluster.worker import Outcome, Setting, Worker
from efface.errors import JobFailure, UserError

START_SECONDS = 600.0
"""After so long without any worker coming up a run is given up."""

STARTS = 3
"""How often in a row workers may die while they start."""

LOOK_FOR_ROOM = 10.0
"""Seconds between two looks whether the cluster has room for more workers."""


WorkerClass = type[Worker] | type[StandIn]


class Executor(Protocol):
    """Numbered workers, each of which takes up to `depth` pieces of work at a time."""

    workers: int
    """How many there are; there may come to be more."""
    depth: int
    gangs: "Gangs | None"
    """How several workers train a job together; None: one does."""

    def arrived(self) -> list[int]:
        """Workers that can take work since now: at the beginning, and again where another took one's place."""

    def submit(self, worker: int, work: Work) -> None:
        """Hand a piece of work to a worker; returns at once, or when the work is done."""

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Work, Outcome]]:
        """What has ended, waiting up to `timeout` seconds for something to end."""

    def replace(self, worker: int) -> bool:
        """Stop a worker at once, whatever it does, and start another in its place; False where that cannot be done."""

    def clock(self) -> float:
        """Seconds, from any start, by the clock that the work takes its time by."""

    def close(self) -> None:
        """Let go of the workers."""


class Gangs(Protocol):
    """What an executor does that has several workers train a job together."""

    def gather(self, idle: Sequence[int]) -> list[int] | None:
        """Of the workers that have nothing to do, those that should train a job together; None: not yet."""

    def submit_job(self, workers: Sequence[int], work: Work) -> None:
        """Hand a job to a gang in the place of several workers. It ends as the first one's, and all are gone then."""


class InProcess:
    """One worker in this process: no Ray, easy to debug."""

    workers = 1
    depth = 1
    gangs: Gangs | None = None

    def __init__(self, setting: Setting, stopping: Callable[[], bool], worker: WorkerClass = Worker) -> None:
        self._worker = worker(setting, stopping)
        self._arrived = [0]
        self._ended: list[tuple[int, Work, Outcome]] = []

    def arrived(self) -> list[int]:
        arrived, self._arrived = self._arrived, []
        return arrived

    def submit(self, worker: int, work: Work) -> None:
        self._ended.append((worker, work, self._worker.run(work)))

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Work, Outcome]]:
        ended, self._ended = self._ended, []
        yield from ended

    def replace(self, worker: int) -> bool:
        return False

    def clock(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        pass


class RayActors:
    """A worker in each of several Ray actors.

    Work that dies with its actor comes back as broken or lost, and it is the driver that decides whether to try it
    again (Ray's own retries know no end). A new actor takes the place of the dead one: with Ray's own restarts,
    whatever is sent while the actor comes up again is lost at once.
    """

    depth = 2

    def __init__(self, setting: Setting, wanted: int, address: str | None = None, worker: WorkerClass = Worker) -> None:
        """At most `wanted` actors of the class `worker`. Raises UserError where not one fits on the cluster."""
        import ray

        self._own = not ray.is_initialized()
        # Sockets have a limit of 107 characters to their paths, so Ray's folder stays short.
        self._scratch = tempfile.TemporaryDirectory(prefix="efface-ray-", ignore_cleanup_errors=True)
        if self._own:
            start_or_join(address or os.environ.get("RAY_ADDRESS"), setting.cpus, self._scratch.name)
        self._class = worker
        self._setting = setting
        self._actors: list[Any] = []
        self._running: dict[Any, tuple[int, Work]] = {}
        self._gangs: dict[int, list[int]] = {}
        """First worker of a gang -> all whose places it takes."""
        self._nodes: dict[int, str] = {}
        """Node of each worker that came up."""
        self.gangs: Gangs | None = self if setting.processes > 1 else None
        self._starting: dict[Any, int] = {}
        self._deaths = 0
        self._wanted = wanted
        self._alive_at = self._looked_for_room = time.monotonic()
        try:
            self.workers = min(wanted, _room(setting))
            if self.workers < setting.processes:
                raise UserError(
                    f"a job is trained by {setting.processes} processes, and the cluster has room for {self.workers} "
                    "workers; lower resources.processes in the campaign, or allow more workers"
                )
            self._actors = [None] * self.workers
            for number in range(self.workers):
                self._start(number)
        except BaseException:
            self.close()
            raise

    def arrived(self) -> list[int]:
        import ray
        from ray.exceptions import RayActorError

        if not self._starting:
            self._grow()
            return []
        ready, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
        workers = []
        for reference in ready:
            worker = self._starting.pop(reference)
            try:
                self._nodes[worker] = ray.get(reference)
            except RayActorError as error:
                self._deaths += not not_its_fault(error)
                if "UserError" in str(error) or self._deaths >= STARTS:
                    raise UserError(f"a worker cannot start: {_last_line(str(error))}") from None
                ray.kill(self._actors[worker])  # it may only be out of reach
                self._start(worker)
                continue
            self._deaths = 0
            workers.append(worker)
        return workers

    def submit(self, worker: int, work: Work) -> None:
        self._running[self._actors[worker].run.remote(work)] = (worker, work)

    def gather(self, idle: Sequence[int]) -> list[int] | None:
        """On one node where any has so many workers, that which has the fewest to spare."""
        size, places = self._setting.processes, dict[str, list[int]]()
        for worker in idle:
            places.setdefault(self._nodes[worker], []).append(worker)
        fitting = [workers for workers in places.values() if len(workers) >= size]
        if fitting:
            return min(fitting, key=len)[:size]
        largest = max(Counter(self._nodes.values()).values(), default=0)
        return list(idle)[:size] if largest < size <= len(idle) else None

    def submit_job(self, workers: Sequence[int], work: Work) -> None:
        import ray

        first = workers[0]
        for worker in workers:  # their resources become the gang's
            ray.kill(self._actors[worker])
        leader = TrainLeader if self._setting.launcher == "ray-train" else Leader
        self._actors[first] = ray.remote(leader).options(num_cpus=0, max_restarts=0).remote()
        self._gangs[first] = list(workers)
        one_node = len({self._nodes[worker] for worker in workers}) == 1
        training = self._actors[first].run.remote(self._setting, work, self._setting.processes, one_node)
        self._running[training] = (first, work)

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Work, Outcome]]:
        import ray

        awaited = [*self._running, *self._starting]
        if not ray.wait(awaited, num_returns=1, timeout=timeout)[0]:
            self._give_up_on_nobody()
            return
        self._alive_at = time.monotonic()
        running = list(self._running)
        if not running:
            return
        ended, _ = ray.wait(running, num_returns=len(running), timeout=0)
        for reference in ended:
            if reference in self._running:  # else it went with its actor
                yield from self._ended(reference)

    def replace(self, worker: int) -> bool:
        import ray

        for reference in self._of(worker):
            del self._running[reference]
        ray.kill(self._actors[worker])
        self._restart(worker)
        return True

    def clock(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        import ray

        for actor in self._actors:
            if actor is not None:
                ray.kill(actor)
        if self._own:
            ray.shutdown()
        self._scratch.cleanup()

    def _start(self, worker: int) -> None:
        import ray

        options = {"num_cpus": self._setting.cpus, "num_gpus": self._setting.gpus, "max_restarts": 0}
        self._actors[worker] = ray.remote(self._class).options(**options).remote(self._setting)
        self._starting[self._actors[worker].ready.remote()] = worker
        self._nodes.pop(worker, None)
        self._alive_at = time.monotonic()

    def _grow(self) -> None:
        """Start more workers where nodes have joined since, or other work has left room."""
        if self.workers >= self._wanted or time.monotonic() - self._looked_for_room < LOOK_FOR_ROOM:
            return
        self._looked_for_room = time.monotonic()
        # The places of workers that are there count as taken, also while a gang is only about to take them.
        more = min(_free_places(self._setting), _places(self._setting) - self.workers, self._wanted - self.workers)
        for _ in range(more):
            self._actors.append(None)
            self.workers += 1
            self._start(self.workers - 1)

    def _restart(self, worker: int) -> None:
        """New workers in the place of one that is gone, or of all of its gang."""
        for place in self._gangs.pop(worker, [worker]):
            self._start(place)

    def _of(self, worker: int) -> list[Any]:
        """The calls that a worker has not answered yet, in their order."""
        return [reference for reference, (of, _) in self._running.items() if of == worker]

    def _ended(self, reference: Any) -> Iterator[tuple[int, Work, Outcome]]:
        """How a call ended; if its actor died, how all the calls it had not answered did."""
        import ray
        from ray.exceptions import RayActorError, RayError

        worker, work = self._running.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
            # What breaks on a GPU may leave the process unfit for whatever comes next.
            gone = worker in self._gangs or (outcome.state == "fault" and self._setting.gpus > 0)
        except RayActorError as error:
            state: Literal["lost", "fault"] = "lost" if not_its_fault(error) else "fault"
            outcome, gone = Outcome(state, "the worker died", str(error)), True
        except RayError as error:
            outcome, gone = Outcome("fault", type(error).__name__, str(error)), True
        if not gone:
            yield worker, work, outcome
            return
        # It was the first in the worker's line that was under way; the others only waited there.
        waiting = [self._running.pop(other) for other in self._of(worker)]
        ray.kill(self._actors[worker])  # it may only be out of reach, and would keep its place
        self._restart(worker)
        yield worker, work, replace(outcome, worker_gone=True)
        for of, waited in waiting:
            yield of, waited, Outcome("lost", "the worker died", worker_gone=True)

    def _give_up_on_nobody(self) -> None:
        """Raises JobFailure where for a long time there has been no worker at all."""
        if self._running or time.monotonic() - self._alive_at < START_SECONDS:
            return
        need = _told(_need(self._setting))
        raise JobFailure(
            f"no worker came up within {START_SECONDS:g} s, each needs {need}; what is finished is kept, "
            "start again when the cluster has them"
        )


def start_or_join(address: str | None, cpus: int, scratch: str) -> None:
    """Join the Ray at `address`, or start one on this machine that listens on loopback alone. Raises UserError."""
    import ray
    from ray._private import ray_constants

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
            with _signals_kept():
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise UserError(f"no Ray cluster can be joined at '{address}': {_last_line(str(error))}") from None
        return
    # Made for other systems, this keeps Ray's processes on the loopback address. Ray itself reads it when it is
    # imported, which may have been earlier.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Ray's own 15 would have workers wait for all else on the machine, also for the driver, which only waits for them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray_constants.ENABLE_RAY_CLUSTER = False
    with _signals_kept():
        ray.init("local", num_cpus=max(os.cpu_count() or 1, cpus), include_dashboard=False, _temp_dir=scratch, **quiet)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """As it starts, Ray takes SIGTERM for itself and would end the process on it: ours are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)


def _room(setting: Setting) -> int:
    """How many workers the cluster has room for now. Raises UserError where it is not one."""
    import ray

    need, total = _need(setting), ray.cluster_resources()
    for name, amount in need.items():
        most = max((node["Resources"].get(name, 0) for node in _nodes()), default=0)
        if amount > most:
            raise UserError(
                f"a worker needs {amount:g} {name}, and no node of the cluster has more than {most:g} "
                f"(the whole cluster: {total.get(name, 0):g}); lower resources in the campaign"
            )
    room = min(_places(setting), _free_places(setting))
    if room < 1:
        free = ray.available_resources()
        raise UserError(
            f"a worker needs {_told(need)}, and all of the cluster is taken (free: "
            f"{_told({name: free.get(name, 0.0) for name in need})}); wait for it, or stop what runs there"
        )
    return room


def _places(setting: Setting) -> int:
    """Workers that fit on all nodes together, if nothing else runs there."""
    need = {name: amount for name, amount in _need(setting).items() if amount}
    return sum(min(int(node["Resources"].get(name, 0) // need[name]) for name in need) for node in _nodes())


def _free_places(setting: Setting) -> int:
    """Workers for which enough is free, taking all nodes together."""
    import ray

    free = ray.available_resources()
    return min(int(free.get(name, 0) // amount) for name, amount in _need(setting).items() if amount)


def _need(setting: Setting) -> dict[str, float]:
    return {"CPU": float(setting.cpus), "GPU": setting.gpus}


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _told(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].split("UserError: ", 1)[-1]
