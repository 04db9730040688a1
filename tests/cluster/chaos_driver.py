"""A driver to be disturbed: `efface run`, whole and unchanged, in a process forked from a warm one.

The code that is tried is not changed for it. Only the worker is another class where a fake worker is wanted.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from chaos_cluster import path_of_workers
from chaos_within import VolatileDisk, jumping_clock, kill_at_write
from fake_worker import FakeWorker

import efface.__main__ as entry
import efface.cluster.run as running
from efface.cluster.storage import process as processes
from efface.cluster.storage.lease import Lease
from efface.cluster.workers.local_executor import LocalExecutor
from efface.cluster.workers.ray_executor import RayExecutor
from efface.launch import cli
from efface.launch.commands import run

assert cli and run  # imported here so that no fork has to


@dataclass(frozen=True)
class DriverConfig:
    """What a driver is to do, and what goes wrong with it from within."""

    root: Path
    output: Path
    """Where its output goes."""
    campaign: str = "demo"
    overrides: tuple[str, ...] = ()
    effects: Path | None = None
    """The file of the fake worker's effects; None: the real worker."""
    job_seconds: float = 0.0
    shard_seconds: float = 0.0
    workers: int = 0
    address: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    kill_at_write: int | None = None
    """Which of the driver's writes is not made any more."""
    kill_worker_at_write: int | None = None
    """The same in the first of the Ray workers that comes so far."""
    clock: int | None = None
    """Seed of a clock that jumps by years, back and forth."""
    writes: Path | None = None
    """Where it is noted how many writes were made."""
    power_loss: int | None = None
    """Seed of a loss of power that comes with the kill: what was not synced is lost."""
    namespaces: str | None = None
    """In place of the process's own: as in a container, whose processes others cannot look up."""
    heartbeat_timeout: float | None = None
    """Seconds; None: the usual ones."""


class Driver:
    """A driver's process."""

    def __init__(self, config: DriverConfig) -> None:
        self.config = config
        self._process = multiprocessing.get_context("fork").Process(target=_drive, args=(config,))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the child is where `efface` itself begins
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        self._below: dict[int, psutil.Process] = {}

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        """Does nothing where the process is no more."""
        self._see()
        if self._process.is_alive():
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal; None where it does not end in time, and then it is killed."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._see()
            self._process.kill()
            self._process.join()
        _, alive = psutil.wait_procs(list(self._below.values()), timeout=10)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        return code

    def _see(self) -> None:
        """Remember the processes below, which outlive a driver that is killed for a moment."""
        with suppress(psutil.Error):
            self._below |= {child.pid: child for child in psutil.Process(self.pid).children(recursive=True)}


def _drive(config: DriverConfig) -> None:
    """In the new process."""
    out = os.open(config.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)
    os.environ |= {"PYTHONPATH": path_of_workers(), **config.environment}
    if config.address:
        from ray._private import ray_constants

        # Else Ray looks for a cluster on loopback elsewhere. It reads the variable when it is imported, which may have
        # been before.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
    if config.effects:
        _use_fake_worker(config)
    if config.namespaces:
        processes._namespaces = lambda: str(config.namespaces)
    if config.heartbeat_timeout:
        Lease.__init__.__defaults__ = (config.heartbeat_timeout / 10, config.heartbeat_timeout)
    lose_power = None
    if config.power_loss is not None:
        backups = config.root.parent / "backups" / str(os.getpid())
        lose_power = VolatileDisk(config.root, backups, config.power_loss).lose_power
    count = kill_at_write(config.kill_at_write, before=lose_power or (lambda: None))
    if config.clock is not None:
        jumping_clock(config.clock)
    workers = ["--workers", str(config.workers), *(["--address", config.address] if config.address else [])]
    sets = [word for override in config.overrides for word in ("--set", override)]
    sys.argv = ["efface", "run", config.campaign, "--out", str(config.root), *workers, *sets]
    code = 70
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under `nohup`
    signal.signal(signal.SIGINT, entry.leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        entry.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if config.writes:
        config.writes.write_text(str(count()))
    os._exit(code)


def _use_fake_worker(config: DriverConfig) -> None:
    """Use the fake worker where workers are made."""
    once = f"{config.output}.worker-killed"

    class Tried(FakeWorker):
        effects = str(config.effects)
        job_seconds = config.job_seconds
        shard_seconds = config.shard_seconds
        kill_at = config.kill_worker_at_write if config.workers else None

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if self.kill_at is not None:
                kill_at_write(self.kill_at, once)

    running.LocalExecutor = lambda context, should_stop, _: LocalExecutor(context, should_stop, Tried)  # type: ignore[misc,assignment]
    running.RayExecutor = lambda context, max_workers, address, _: RayExecutor(context, max_workers, address, Tried)  # type: ignore[misc,assignment]
