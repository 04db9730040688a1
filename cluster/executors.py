"""Where work runs: in this process, or in Ray actors. Both hold `Worker`s and answer in the same words."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from efface.cluster.run_folder import Work
from efface.cluster.worker import Outcome, Setting, Worker
from efface.errors import UserError


class Executor(Protocol):
    """Numbered workers, each of which takes up to `depth` pieces of work at a time."""

    workers: int
    depth: int

    def submit(self, worker: int, work: Work) -> None:
        """Hand a piece of work to a worker; returns at once, or when the work is done."""

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Work, Outcome]]:
        """What has ended, waiting up to `timeout` seconds for something to end."""

    def close(self) -> None:
        """Let go of the workers."""


class InProcess:
    """One worker in this process: no Ray, easy to debug."""

    workers = 1
    depth = 1

    def __init__(self, setting: Setting) -> None:
        self._worker = Worker(setting)
        self._ended: list[tuple[int, Work, Outcome]] = []

    def submit(self, worker: int, work: Work) -> None:
        self._ended.append((worker, work, self._worker.run(work)))

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Work, Outcome]]:
        ended, self._ended = self._ended, []
        yield from ended

    def close(self) -> None:
        pass


class RayActors:
    """A worker in each of several Ray actors.

    Work that dies with its actor comes back as a fault, and it is the driver that decides whether to try it again
    (Ray's own retries know no end). A new actor takes the place of the dead one: with Ray's own restarts, whatever
    is sent while the actor comes up again is lost at once.
    """

    depth = 2

    def __init__(self, setting: Setting, wanted: int, address: str | None = None) -> None:
        import ray

        self._own = not ray.is_initialized()
        # Sockets have a limit of 107 characters to their paths, so Ray's folder stays short.
        self._scratch = tempfile.TemporaryDirectory(prefix="efface-ray-", ignore_cleanup_errors=True)
        if self._own:
            _start_or_join(address or os.environ.get("RAY_ADDRESS"), setting, self._scratch.name)
        self._actors: list[Any] = []
        self._running: dict[Any, tuple[int, Work, Any]] = {}
        # An absolute path: an actor's working directory is its own.
        self._setting = replace(setting, root=str(Path(setting.root).resolve()))
        try:
            self.workers = _how_many(setting, wanted)
            self._actors += [self._new_actor() for _ in range(self.workers)]
        except BaseException:
            self.close()
            raise

    def submit(self, worker: int, work: Work) -> None:
        actor = self._actors[worker]
        self._running[actor.run.remote(work)] = (worker, work, actor)

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Work, Outcome]]:
        import ray

        ended, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        for reference in ended:
            worker, work, actor = self._running.pop(reference)
            outcome = self._outcome(reference)
            if outcome is None:
                if self._actors[worker] is actor:
                    ray.kill(actor)
                    self._actors[worker] = self._new_actor()
                outcome = Outcome("fault", "the worker died")
            yield worker, work, outcome

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if self._own:
            ray.shutdown()
        self._scratch.cleanup()

    def _new_actor(self) -> Any:
        import ray

        options = {"num_cpus": self._setting.cpus, "num_gpus": self._setting.gpus, "max_restarts": 0}
        return ray.remote(Worker).options(**options).remote(self._setting)

    def _outcome(self, reference: Any) -> Outcome | None:
        """How a call ended; None: its actor died. Raises UserError where a worker cannot even start."""
        import ray
        from ray.exceptions import RayActorError, RayError

        try:
            outcome: Outcome = ray.get(reference)
            return outcome
        except RayActorError as error:
            if error.actor_init_failed:
                raise UserError(f"a worker cannot start: {_last_line(str(error))}") from None
            return None
        except RayError as error:
            return Outcome("fault", type(error).__name__, str(error))


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].split("UserError: ", 1)[-1]


def _start_or_join(address: str | None, setting: Setting, scratch: str) -> None:
    """Join the Ray at `address`, or start one on this machine that listens on loopback alone."""
    import ray
    from ray._private import ray_constants

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"no Ray cluster can be joined at '{address}': {_last_line(str(error))}") from None
        return
    # Made for other systems, this keeps Ray's processes on the loopback address. Ray itself reads it when it is
    # imported, which may have been earlier.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    cpus = max(os.cpu_count() or 1, setting.cpus)
    ray.init("local", num_cpus=cpus, include_dashboard=False, _temp_dir=scratch, **quiet)


def _how_many(setting: Setting, wanted: int) -> int:
    """As many workers as are wanted and fit. Raises UserError where not one fits."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    need = {"CPU": float(setting.cpus), "GPU": setting.gpus}
    for name, amount in need.items():
        most = max((node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]), default=0)
        if amount > most:
            raise UserError(
                f"a worker needs {amount:g} {name}, and no node of the cluster has more than {most:g} "
                f"(the whole cluster: {total.get(name, 0):g}); lower resources in the campaign"
            )
    fit = min(int(free.get(name, 0) // amount) for name, amount in need.items() if amount)
    return max(1, min(wanted, fit))
