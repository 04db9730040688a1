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

from efface.cluster.storage.run_folder import Task
from efface.cluster.workers.fake_worker import FakeWorker
from efface.cluster.workers.process_group import ActorLauncher, RayTrainLauncher, is_node_failure
from efface.cluster.workers.worker import Outcome, Worker, WorkerContext
from efface.errors import JobFailure, UserError

START_TIMEOUT = 600.0
"""After so long without any worker coming up a run is given up."""

MAX_START_FAILURES = 3
"""How often in a row workers may die while they start."""

CAPACITY_CHECK_INTERVAL = 10.0
"""Seconds between two looks whether the cluster has room for more workers."""


WorkerClass = type[Worker] | type[FakeWorker]


class Executor(Protocol):
    """Numbered workers, each of which takes up to `depth` pieces of work at a time."""

    workers: int
    """How many there are; there may come to be more."""
    depth: int
    process_groups: "ProcessGroups | None"
    """How several workers train a job together; None: one does."""

    def new_workers(self) -> list[int]:
        """Workers that can take work since now: at the beginning, and again where another took one's place."""

    def submit(self, worker: int, task: Task) -> None:
        """Hand a piece of work to a worker; returns at once, or when the work is done."""

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        """What has ended, waiting up to `timeout` seconds for something to end."""

    def replace(self, worker: int) -> bool:
        """Stop a worker at once, whatever it does, and start another in its place; False where that cannot be done."""

    def clock(self) -> float:
        """Seconds, from any start, by the clock that the work takes its time by."""

    def close(self) -> None:
        """Let go of the workers."""


class ProcessGroups(Protocol):
    """What an executor does that has several workers train a job together."""

    def select_workers(self, idle: Sequence[int]) -> list[int] | None:
        """Of the workers that have nothing to do, those that should train a job together; None: not yet."""

    def submit_job(self, workers: Sequence[int], task: Task) -> None:
        """Hand a job to a gang in the place of several workers. It ends as the first one's, and all are gone then."""


class LocalExecutor:
    """One worker in this process: no Ray, easy to debug."""

    workers = 1
    depth = 1
    process_groups: ProcessGroups | None = None

    def __init__(self, context: WorkerContext, should_stop: Callable[[], bool], worker: WorkerClass = Worker) -> None:
        self._worker = worker(context, should_stop)
        self._new_workers = [0]
        self._finished: list[tuple[int, Task, Outcome]] = []

    def new_workers(self) -> list[int]:
        new_workers, self._new_workers = self._new_workers, []
        return new_workers

    def submit(self, worker: int, task: Task) -> None:
        self._finished.append((worker, task, self._worker.run(task)))

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        ended, self._finished = self._finished, []
        yield from ended

    def replace(self, worker: int) -> bool:
        return False

    def clock(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        pass


class RayExecutor:
    """A worker in each of several Ray actors.

    Work that dies with its actor comes back as broken or lost, and it is the driver that decides whether to try it
    again (Ray's own retries know no end). A new actor takes the place of the dead one: with Ray's own restarts,
    whatever is sent while the actor comes up again is lost at once.
    """

    depth = 2

    def __init__(
        self, context: WorkerContext, max_workers: int, address: str | None = None, worker: WorkerClass = Worker
    ) -> None:
        """At most `max_workers` actors of the class `worker`. Raises UserError where not one fits on the cluster."""
        import ray

        self._own = not ray.is_initialized()
        # Sockets have a limit of 107 characters to their paths, so Ray's folder stays short.
        self._scratch = tempfile.TemporaryDirectory(prefix="efface-ray-", ignore_cleanup_errors=True)
        if self._own:
            init_ray(address or os.environ.get("RAY_ADDRESS"), context.cpus, self._scratch.name)
        self._class = worker
        self._context = context
        self._actors: list[Any] = []
        self._running: dict[Any, tuple[int, Task]] = {}
        self._process_groups: dict[int, list[int]] = {}
        """First worker of a gang -> all whose places it takes."""
        self._nodes: dict[int, str] = {}
        """Node of each worker that came up."""
        self.process_groups: ProcessGroups | None = self if context.processes > 1 else None
        self._starting: dict[Any, int] = {}
        self._start_failures = 0
        self._max_workers = max_workers
        self._last_alive = self._last_capacity_check = time.monotonic()
        try:
            self.workers = min(max_workers, _capacity(context))
            if self.workers < context.processes:
                raise UserError(
                    f"a job is trained by {context.processes} processes, and the cluster has room for {self.workers} "
                    "workers; lower resources.processes in the campaign, or allow more workers"
                )
            self._actors = [None] * self.workers
            for number in range(self.workers):
                self._start(number)
        except BaseException:
            self.close()
            raise

    def new_workers(self) -> list[int]:
        import ray
        from ray.exceptions import RayActorError

        if not self._starting:
            self._scale_up()
            return []
        ready, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
        workers = []
        for reference in ready:
            worker = self._starting.pop(reference)
            try:
                self._nodes[worker] = ray.get(reference)
            except RayActorError as error:
                self._start_failures += not is_node_failure(error)
                if "UserError" in str(error) or self._start_failures >= MAX_START_FAILURES:
                    raise UserError(f"a worker cannot start: {_last_line(str(error))}") from None
                ray.kill(self._actors[worker])  # it may only be out of reach
                self._start(worker)
                continue
            self._start_failures = 0
            workers.append(worker)
        return workers

    def submit(self, worker: int, task: Task) -> None:
        self._running[self._actors[worker].run.remote(task)] = (worker, task)

    def select_workers(self, idle: Sequence[int]) -> list[int] | None:
        """On one node where any has so many workers, that which has the fewest to spare."""
        size, idle_by_node = self._context.processes, dict[str, list[int]]()
        for worker in idle:
            idle_by_node.setdefault(self._nodes[worker], []).append(worker)
        fitting = [workers for workers in idle_by_node.values() if len(workers) >= size]
        if fitting:
            return min(fitting, key=len)[:size]
        largest = max(Counter(self._nodes.values()).values(), default=0)
        return list(idle)[:size] if largest < size <= len(idle) else None

    def submit_job(self, workers: Sequence[int], task: Task) -> None:
        import ray

        first = workers[0]
        for worker in workers:  # their resources become the gang's
            ray.kill(self._actors[worker])
        launcher = RayTrainLauncher if self._context.launcher == "ray-train" else ActorLauncher
        self._actors[first] = ray.remote(launcher).options(num_cpus=0, max_restarts=0).remote()
        self._process_groups[first] = list(workers)
        one_node = len({self._nodes[worker] for worker in workers}) == 1
        training = self._actors[first].run.remote(self._context, task, self._context.processes, one_node)
        self._running[training] = (first, task)

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        import ray

        awaited = [*self._running, *self._starting]
        if not ray.wait(awaited, num_returns=1, timeout=timeout)[0]:
            self._check_start_timeout()
            return
        self._last_alive = time.monotonic()
        running = list(self._running)
        if not running:
            return
        ended, _ = ray.wait(running, num_returns=len(running), timeout=0)
        for reference in ended:
            if reference in self._running:  # else it went with its actor
                yield from self._finished(reference)

    def replace(self, worker: int) -> bool:
        import ray

        for reference in self._pending_calls(worker):
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

        options = {"num_cpus": self._context.cpus, "num_gpus": self._context.gpus, "max_restarts": 0}
        self._actors[worker] = ray.remote(self._class).options(**options).remote(self._context)
        self._starting[self._actors[worker].ready.remote()] = worker
        self._nodes.pop(worker, None)
        self._last_alive = time.monotonic()

    def _scale_up(self) -> None:
        """Start more workers where nodes have joined since, or other work has left room."""
        if self.workers >= self._max_workers or time.monotonic() - self._last_capacity_check < CAPACITY_CHECK_INTERVAL:
            return
        self._last_capacity_check = time.monotonic()
        # The places of workers that are there count as taken, also while a gang is only about to take them.
        more = min(
            _free_slots(self._context), _total_slots(self._context) - self.workers, self._max_workers - self.workers
        )
        for _ in range(more):
            self._actors.append(None)
            self.workers += 1
            self._start(self.workers - 1)

    def _restart(self, worker: int) -> None:
        """New workers in the place of one that is gone, or of all of its gang."""
        for member in self._process_groups.pop(worker, [worker]):
            self._start(member)

    def _pending_calls(self, worker: int) -> list[Any]:
        """The calls that a worker has not answered yet, in their order."""
        return [reference for reference, (of, _) in self._running.items() if of == worker]

    def _finished(self, reference: Any) -> Iterator[tuple[int, Task, Outcome]]:
        """How a call ended; if its actor died, how all the calls it had not answered did."""
        import ray
        from ray.exceptions import RayActorError, RayError

        worker, task = self._running.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
            # What breaks on a GPU may leave the process unfit for whatever comes next.
            gone = worker in self._process_groups or (outcome.state == "error" and self._context.gpus > 0)
        except RayActorError as error:
            state: Literal["worker_lost", "error"] = "worker_lost" if is_node_failure(error) else "error"
            outcome, gone = Outcome(state, "the worker died", str(error)), True
        except RayError as error:
            outcome, gone = Outcome("error", type(error).__name__, str(error)), True
        if not gone:
            yield worker, task, outcome
            return
        # It was the first in the worker's line that was under way; the others only waited there.
        waiting = [self._running.pop(other) for other in self._pending_calls(worker)]
        ray.kill(self._actors[worker])  # it may only be out of reach, and would keep its place
        self._restart(worker)
        yield worker, task, replace(outcome, worker_gone=True)
        for of, waited in waiting:
            yield of, waited, Outcome("worker_lost", "the worker died", worker_gone=True)

    def _check_start_timeout(self) -> None:
        """Raises JobFailure where for a long time there has been no worker at all."""
        if self._running or time.monotonic() - self._last_alive < START_TIMEOUT:
            return
        need = _describe(_required_resources(self._context))
        raise JobFailure(
            f"no worker came up within {START_TIMEOUT:g} s, each needs {need}; what is finished is kept, "
            "start again when the cluster has them"
        )


def init_ray(address: str | None, cpus: int, scratch: str) -> None:
    """Join the Ray at `address`, or start one on this machine that listens on loopback alone. Raises UserError."""
    import ray
    from ray._private import ray_constants

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
            with _keep_signal_handlers():
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
    with _keep_signal_handlers():
        ray.init("local", num_cpus=max(os.cpu_count() or 1, cpus), include_dashboard=False, _temp_dir=scratch, **quiet)


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """As it starts, Ray takes SIGTERM for itself and would end the process on it: ours are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)


def _capacity(context: WorkerContext) -> int:
    """How many workers the cluster has room for now. Raises UserError where it is not one."""
    import ray

    need, total = _required_resources(context), ray.cluster_resources()
    for name, amount in need.items():
        most = max((node["Resources"].get(name, 0) for node in _nodes()), default=0)
        if amount > most:
            raise UserError(
                f"a worker needs {amount:g} {name}, and no node of the cluster has more than {most:g} "
                f"(the whole cluster: {total.get(name, 0):g}); lower resources in the campaign"
            )
    capacity = min(_total_slots(context), _free_slots(context))
    if capacity < 1:
        free = ray.available_resources()
        raise UserError(
            f"a worker needs {_describe(need)}, and all of the cluster is taken (free: "
            f"{_describe({name: free.get(name, 0.0) for name in need})}); wait for it, or stop what runs there"
        )
    return capacity


def _total_slots(context: WorkerContext) -> int:
    """Workers that fit on all nodes together, if nothing else runs there."""
    need = {name: amount for name, amount in _required_resources(context).items() if amount}
    return sum(min(int(node["Resources"].get(name, 0) // need[name]) for name in need) for node in _nodes())


def _free_slots(context: WorkerContext) -> int:
    """Workers for which enough is free, taking all nodes together."""
    import ray

    free = ray.available_resources()
    return min(int(free.get(name, 0) // amount) for name, amount in _required_resources(context).items() if amount)


def _required_resources(context: WorkerContext) -> dict[str, float]:
    return {"CPU": float(context.cpus), "GPU": context.gpus}


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _describe(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].split("UserError: ", 1)[-1]
