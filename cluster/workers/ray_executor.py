"""Workers in Ray actors."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from efface.cluster.tasks.retry_rules import Next, Outcome, is_node_failure, outcome_of_death
from efface.cluster.tasks.task import Task
from efface.cluster.workers.capacity import capacity, describe_resources, free_slots, required_resources, total_slots
from efface.cluster.workers.executor import ProcessGroups, WorkerClass
from efface.cluster.workers.process_group import ActorLauncher, RayTrainLauncher
from efface.cluster.workers.ray_session import init_ray, last_line, ray_scratch
from efface.cluster.workers.worker import Worker, WorkerContext
from efface.errors import JobFailure, UserError

START_TIMEOUT = 600.0
"""Seconds without any worker coming up after which a run is given up."""

MAX_START_FAILURES = 3
"""How often in a row workers may die while they start."""

CAPACITY_CHECK_INTERVAL = 10.0
"""Seconds between two looks whether more workers fit on the cluster."""


class RayExecutor:
    """A worker in each of several Ray actors.

    A task that dies with its actor comes back as an error or a lost worker, and the driver decides whether to try it
    again (Ray's own retries have no limit). A new actor replaces the dead one: with Ray's own restarts, whatever is
    sent while the actor comes up again is lost at once.
    """

    depth = 2

    def __init__(
        self, context: WorkerContext, max_workers: int, address: str | None = None, worker: WorkerClass = Worker
    ) -> None:
        """At most `max_workers` actors of the class `worker`. Raises UserError where not one fits on the cluster."""
        import ray

        self._own = not ray.is_initialized()
        self._scratch = ray_scratch()
        if self._own:
            init_ray(address or os.environ.get("RAY_ADDRESS"), context.cpus, self._scratch.name)
        self._class = worker
        self._context = context
        self._actors: list[Any] = []
        self._running: dict[Any, tuple[int, tuple[Task, ...]]] = {}
        """By the call: its worker and its tasks, several if they are packed."""
        self._process_groups: dict[int, list[int]] = {}
        """First worker of a process group -> all that it replaces."""
        self._nodes: dict[int, str] = {}
        """Node of each worker that came up."""
        self._speeds: dict[int, float] = {}
        self.process_groups: ProcessGroups | None = self if context.processes > 1 else None
        self._starting: dict[Any, int] = {}
        self._start_failures = 0
        self._max_workers = max_workers
        self._last_alive = self._last_capacity_check = time.monotonic()
        try:
            self.workers = min(max_workers, capacity(context))
            if self.workers < context.processes:
                raise UserError(
                    f"a job is trained by {context.processes} processes, and {self.workers} workers fit on the "
                    "cluster; lower resources.processes in the campaign, or allow more workers"
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
                self._nodes[worker], self._speeds[worker] = ray.get(reference)
            except RayActorError as error:
                self._start_failures += not is_node_failure(error)
                if "UserError" in str(error) or self._start_failures >= MAX_START_FAILURES:
                    raise UserError(f"a worker cannot start: {last_line(str(error))}") from None
                ray.kill(self._actors[worker])  # it may only be out of reach
                self._start(worker)
                continue
            self._start_failures = 0
            workers.append(worker)
        return workers

    def speed(self, worker: int) -> float:
        return self._speeds.get(worker, 1.0)

    def submit(self, worker: int, task: Task) -> None:
        self._running[self._actors[worker].run.remote(task)] = (worker, (task,))

    def submit_pack(self, worker: int, tasks: Sequence[Task]) -> None:
        self._running[self._actors[worker].run_pack.remote(tuple(tasks))] = (worker, tuple(tasks))

    def select_workers(self, idle: Sequence[int]) -> list[int] | None:
        """On one node where any has so many idle workers, the one with the fewest of them."""
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
        for worker in workers:  # their resources become the group's
            ray.kill(self._actors[worker])
        launcher = RayTrainLauncher if self._context.launcher == "ray-train" else ActorLauncher
        self._actors[first] = ray.remote(launcher).options(num_cpus=0, max_restarts=0).remote()
        self._process_groups[first] = list(workers)
        one_node = len({self._nodes[worker] for worker in workers}) == 1
        training = self._actors[first].run.remote(self._context, task, self._context.processes, one_node)
        self._running[training] = (first, (task,))

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
        """Start more workers where nodes have joined since, or other work there has ended."""
        if self.workers >= self._max_workers or time.monotonic() - self._last_capacity_check < CAPACITY_CHECK_INTERVAL:
            return
        self._last_capacity_check = time.monotonic()
        # The resources of existing workers count as taken, also while a process group is about to take them.
        more = min(
            free_slots(self._context), total_slots(self._context) - self.workers, self._max_workers - self.workers
        )
        for _ in range(more):
            self._actors.append(None)
            self.workers += 1
            self._start(self.workers - 1)

    def _restart(self, worker: int) -> None:
        """New workers instead of one that is gone, or of all of its process group."""
        for member in self._process_groups.pop(worker, [worker]):
            self._start(member)

    def _pending_calls(self, worker: int) -> list[Any]:
        """The calls that a worker has not answered yet, in their order."""
        return [reference for reference, (of, _) in self._running.items() if of == worker]

    def _finished(self, reference: Any) -> Iterator[tuple[int, Task, Outcome]]:
        """How a call ended; if its actor died, how all the calls it had not answered did."""
        import ray
        from ray.exceptions import RayActorError, RayError

        worker, tasks = self._running.pop(reference)
        try:
            found: Outcome | list[Outcome] = ray.get(reference)
            outcomes = found if isinstance(found, list) else [found]
            # What breaks on a GPU may leave the process unfit for whatever comes next.
            broken = any(outcome.next is Next.RETRY for outcome in outcomes)
            gone = worker in self._process_groups or (broken and self._context.gpus > 0)
        except RayActorError as error:
            # Of several nobody knows whose doing it was.
            shared = len(tasks) > 1
            lost = outcome_of_death(error, "the worker", shared=shared)
            outcomes, gone = [lost] * len(tasks), True
        except RayError as error:
            outcomes, gone = [Outcome.error(type(error).__name__, str(error))] * len(tasks), True
        if not gone:
            for task, outcome in zip(tasks, outcomes, strict=True):
                yield worker, task, outcome
            return
        # It was the first in the worker's line that was under way; the others only waited there.
        waiting = [self._running.pop(other) for other in self._pending_calls(worker)]
        ray.kill(self._actors[worker])  # it may only be out of reach, and would keep its resources
        self._restart(worker)
        for task, outcome in zip(tasks, outcomes, strict=True):
            yield worker, task, replace(outcome, worker_gone=True)
        for of, waited in waiting:
            for task in waited:
                yield of, task, Outcome.worker_lost("the worker died", worker_gone=True)

    def _check_start_timeout(self) -> None:
        """Raises JobFailure where for a long time there has been no worker at all."""
        if self._running or time.monotonic() - self._last_alive < START_TIMEOUT:
            return
        need = describe_resources(required_resources(self._context))
        raise JobFailure(
            f"no worker came up within {START_TIMEOUT:g} s, each needs {need}; what is finished is kept, "
            "start again when the cluster has them"
        )
