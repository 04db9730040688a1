"""What goes wrong with a run. Each disturbance says which exit codes it may lead to, and notes what it may cost."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
from chaos_driver import Driver
from chaos_scene import DISK, Scene, remount, used
from fake_worker import STEPS

from efface.cluster.storage.journal import TaskEnded, read_journal
from efface.cluster.storage.run_folder import RunFolder

KILLED, STOPPED, REFUSED, TRY_AGAIN = -signal.SIGKILL, 130, 2, 75
TOO_EARLY = (-signal.SIGTERM, -signal.SIGHUP)
"""Of signals before the driver listens to them, or after it has done everything."""

HEARTBEAT_TIMEOUT = 1.0
"""Seconds, for drivers that cannot look each other up."""

PAGE = 4096
"""Bytes of the smallest disk; a size of 0 would be no limit at all."""

RPC_FAILURES = (
    '{"CoreWorkerService.grpc_client.PushTask": {"num_failures": 20, "req_failure_prob": 10, "resp_failure_prob": 10,'
    ' "in_flight_failure_prob": 5}, "NodeManagerService.grpc_client.RequestWorkerLease": {"num_failures": 20,'
    ' "req_failure_prob": 15, "resp_failure_prob": 15, "in_flight_failure_prob": 5}}'
)


class Disturbance:
    """Nothing goes wrong."""

    codes: tuple[int, ...] = (0,)
    of_what_is_there = False
    """Whether it needs a run that has begun."""

    def before(self, scene: Scene) -> dict[str, Any]:
        """Meddle before the driver starts; what is to be changed in its order."""
        return {}

    def during(self, scene: Scene, driver: Driver) -> None:
        """Meddle while it runs."""

    def after(self, scene: Scene, code: int) -> None:
        """Put right what keeps the next driver from working, and see what the exit code does not say."""


class KillDriver(Disturbance):
    """SIGKILL at any moment."""

    codes = (0, KILLED)

    def during(self, scene: Scene, driver: Driver) -> None:
        scene.moment(driver)
        driver.signal(signal.SIGKILL)
        scene.losses += scene.workers


class KillDriverBetweenWrites(Disturbance):
    codes = (0, KILLED)

    def before(self, scene: Scene) -> dict[str, Any]:
        scene.losses += scene.workers
        return {"kill_at_write": scene.generator.randint(1, scene.undisturbed.writes)}


class PowerLoss(Disturbance):
    """The power goes at any write: what was not synced is lost, or torn."""

    codes = (0, KILLED)

    def before(self, scene: Scene) -> dict[str, Any]:
        scene.losses += scene.workers
        write = scene.generator.randint(1, scene.undisturbed.writes)
        return {"kill_at_write": write, "power_loss": scene.generator.getrandbits(32)}


class KillTraining(Disturbance):
    """SIGKILL, or a request to stop, while a job is half trained."""

    codes = (0, KILLED, STOPPED)

    def during(self, scene: Scene, driver: Driver) -> None:
        until = time.monotonic() + 300
        known = {path: path.stat().st_mtime_ns for path in self._checkpoints(scene)}
        wanted = scene.generator.randint(1, 3)  # checkpoints that are written before
        while driver.running and wanted and time.monotonic() < until:
            now = {path: path.stat().st_mtime_ns for path in self._checkpoints(scene)}
            wanted -= now != known and bool(now)
            known = now
            time.sleep(0.002)
        time.sleep(scene.generator.uniform(0, 0.02))
        driver.signal(scene.generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        scene.losses += scene.workers

    def _checkpoints(self, scene: Scene) -> list[Path]:
        return [path for path in scene.root.glob("jobs/*/checkpoint.safetensors") if path.exists()]


class AskToStop(Disturbance):
    """SIGTERM, SIGINT or SIGHUP: what runs is stopped, and nothing of it is lost."""

    codes = (0, STOPPED, *TOO_EARLY)

    def during(self, scene: Scene, driver: Driver) -> None:
        scene.moment(driver)
        driver.signal(scene.generator.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))

    def after(self, scene: Scene, code: int) -> None:
        if code in TOO_EARLY:
            scene.losses += scene.workers


class AskTwice(AskToStop):
    """The second signal stops at once."""

    def during(self, scene: Scene, driver: Driver) -> None:
        super().during(scene, driver)
        time.sleep(scene.generator.uniform(0, 0.1))
        driver.signal(signal.SIGINT)
        scene.losses += scene.workers


class Cancel(Disturbance):
    """Somebody elsewhere asks the run to stop."""

    codes = (0, STOPPED)

    def during(self, scene: Scene, driver: Driver) -> None:
        scene.moment(driver)
        if scene.root.exists():
            RunFolder(scene.root).request_stop()


class FullDisk(Disturbance):
    """The disk has less room than is needed, from the start."""

    codes = (0, TRY_AGAIN)

    def before(self, scene: Scene) -> dict[str, Any]:
        self._leave(scene, 2 ** scene.generator.uniform(12, 21))
        return {}

    def after(self, scene: Scene, code: int) -> None:
        remount(scene.root.parent, f"size={DISK}")
        scene.losses += scene.workers

    def _leave(self, scene: Scene, room: float) -> None:
        disk = scene.root.parent
        while True:
            with suppress(subprocess.CalledProcessError):  # it was written to in between, and holds more than that
                remount(disk, f"size={max(PAGE, used(disk) + int(room))}")
                return


class DiskFillsUp(FullDisk):
    """There is no room any more from some moment on."""

    def before(self, scene: Scene) -> dict[str, Any]:
        return {}

    def during(self, scene: Scene, driver: Driver) -> None:
        scene.moment(driver)
        self._leave(scene, 0)


class ReadOnly(Disturbance):
    """The whole disk, from the start."""

    codes = (0, TRY_AGAIN)
    of_what_is_there = True

    def before(self, scene: Scene) -> dict[str, Any]:
        remount(scene.root.parent, "ro")
        return {}

    def after(self, scene: Scene, code: int) -> None:
        remount(scene.root.parent, "rw")


class BecomesReadOnly(Disturbance):
    """Nothing can be made or removed in any folder from some moment on."""

    codes = (0, REFUSED, TRY_AGAIN)

    def during(self, scene: Scene, driver: Driver) -> None:
        scene.moment(driver)
        folders = [scene.root, *(path for path in scene.root.rglob("*") if path.is_dir())]
        subprocess.run(["chattr", "-f", "+i", *folders])

    def after(self, scene: Scene, code: int) -> None:
        subprocess.run(["chattr", "-f", "-R", "-i", scene.root.parent])
        scene.losses += scene.workers


class Damage(Disturbance):
    """Up to three files of the run folder are cut, emptied, changed in a bit or gone; some look as old as before.

    Each kind of file is as likely as any other, however many there are of it.
    """

    of_what_is_there = True

    def before(self, scene: Scene) -> dict[str, Any]:
        for _ in range(scene.generator.randint(1, 3)):
            kinds: dict[str, list[Path]] = {}
            for path in scene.files():
                kinds.setdefault(self._kind(scene, path), []).append(path)
            if kinds:
                self._spoil(scene, scene.generator.choice(kinds[scene.generator.choice(sorted(kinds))]))
        return {}

    def _kind(self, scene: Scene, path: Path) -> str:
        """Where it is, and the end of its name: `evaluations *.images.parquet`."""
        return f"{path.relative_to(scene.root).parts[0]} {path.name.partition('.')[2] or path.name}"

    def _spoil(self, scene: Scene, path: Path) -> None:
        was, data = path.stat(), path.read_bytes()
        kind = scene.generator.choice(["flip", "flip", "cut", "empty", "gone"])
        if kind == "gone":
            path.unlink()
        elif kind == "flip" and data:
            offset = scene.generator.randrange(len(data))
            path.write_bytes(
                data[:offset] + bytes([data[offset] ^ 1 << scene.generator.randrange(8)]) + data[offset + 1 :]
            )
        else:
            path.write_bytes(b"" if kind == "empty" else data[: scene.generator.randint(0, len(data))])
        if kind != "gone" and scene.generator.random() < 0.5:
            os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
            if path.name.endswith((".images.parquet", "delta.safetensors")):
                scene.unlike.add(str(path.relative_to(scene.root)))
        scene.spoilt[path.parent.name] += 1


class WildTimes(Disturbance):
    """All files are from any time within twenty years, and the driver's clock jumps as far."""

    of_what_is_there = True

    def before(self, scene: Scene) -> dict[str, Any]:
        for path in scene.files():
            moment = time.time() + scene.generator.uniform(-3e8, 3e8)
            os.utime(path, (moment, moment))
        return {"clock": scene.generator.getrandbits(32)}


class TwoDrivers(Disturbance):
    """Of two that start together one works; the other says so and leaves."""

    codes = (0, REFUSED)
    of_the_second: ClassVar[dict[str, Any]] = {}
    """How its config differs."""

    def during(self, scene: Scene, driver: Driver) -> None:
        output = scene.folder / "second.txt"
        output.unlink(missing_ok=True)
        time.sleep(scene.generator.choice([0, 0, 0.1]))
        self._second = Driver(replace(driver.config, output=output, **self.of_the_second))
        self._output = output

    def after(self, scene: Scene, code: int) -> None:
        second = self._second.wait(600)
        assert (code, second) in {(0, REFUSED), (REFUSED, 0), (0, 0)}, f"two drivers ended with {code} and {second}"
        if second == REFUSED:
            assert "is at work on this run" in self._output.read_text()


class TwoContainers(TwoDrivers):
    """The same of drivers that cannot look each other up: only the heartbeat says that the first one lives."""

    of_the_second: ClassVar[dict[str, Any]] = {"namespaces": "pid:[2]"}

    def before(self, scene: Scene) -> dict[str, Any]:
        at_work = 3 * HEARTBEAT_TIMEOUT  # a job takes longer than the second driver waits for a heartbeat
        return {"namespaces": "pid:[1]", "heartbeat_timeout": HEARTBEAT_TIMEOUT, "job_seconds": at_work}


class Stall(Disturbance):
    """A driver stands still for longer than its lease lasts; another takes over, and then the first one wakes up."""

    codes = (0, TRY_AGAIN)

    def before(self, scene: Scene) -> dict[str, Any]:
        return {"namespaces": "pid:[1]", "heartbeat_timeout": HEARTBEAT_TIMEOUT}

    def during(self, scene: Scene, driver: Driver) -> None:
        scene.moment(driver)
        driver.signal(signal.SIGSTOP)
        scene.losses += STEPS  # it ends what it was doing, which the other one does too
        other = Driver(replace(driver.config, namespaces="pid:[2]", output=scene.folder / "second.txt"))
        until = time.monotonic() + scene.generator.uniform(1, 3) * HEARTBEAT_TIMEOUT
        while other.running and time.monotonic() < until:
            time.sleep(0.01)
        driver.signal(signal.SIGCONT)
        self._other = other.wait(600)

    def after(self, scene: Scene, code: int) -> None:
        assert self._other in (0, REFUSED), f"the driver that took over ended with {self._other}"


class KillWorker(Disturbance):
    """SIGKILL to a Ray worker; the driver goes on with another."""

    def during(self, scene: Scene, driver: Driver) -> None:
        scene.moment(driver)
        top = psutil.Process(scene.cluster.pid if driver.config.address and scene.cluster else driver.pid)
        with suppress(psutil.Error):
            workers = [p for p in top.children(recursive=True) if p.name().startswith("ray::Tried")]
            if workers:
                scene.generator.choice(workers).kill()
                scene.losses += 1


class KillWorkerBetweenWrites(Disturbance):
    def before(self, scene: Scene) -> dict[str, Any]:
        scene.losses += 1
        return {"kill_worker_at_write": scene.generator.randint(1, max(1, scene.undisturbed.writes // 2))}


class KillNode(Disturbance):
    """A node dies with its raylet and worker, and after a while another joins."""

    def during(self, scene: Scene, driver: Driver) -> None:
        assert scene.cluster
        scene.moment(driver)
        scene.cluster.kill(scene.generator.randint(0, 1))
        scene.losses += 1
        time.sleep(scene.generator.uniform(0, 3))
        scene.cluster.add()


class RpcFailures(Disturbance):
    """Calls between the processes of Ray fail, before they arrive, on the way, or with their answers."""

    def before(self, scene: Scene) -> dict[str, Any]:
        self._before = self._lost(scene)
        return {"address": None, "environment": {"RAY_testing_rpc_failure": RPC_FAILURES, "RAY_worker_niceness": "0"}}

    def after(self, scene: Scene, code: int) -> None:
        scene.losses += self._lost(scene) - self._before

    def _lost(self, scene: Scene) -> int:
        """Tasks that drivers took for lost, as their workers did not answer."""
        ended = [event.state for event in read_journal(RunFolder(scene.root)) if isinstance(event, TaskEnded)]
        return sum(state in ("worker_lost", "error") for state in ended)


IN_PROCESS: dict[type[Disturbance], int] = {
    KillDriver: 4,
    KillDriverBetweenWrites: 6,
    PowerLoss: 6,
    KillTraining: 2,
    Stall: 2,
    AskToStop: 3,
    AskTwice: 1,
    Cancel: 1,
    FullDisk: 2,
    DiskFillsUp: 2,
    ReadOnly: 1,
    BecomesReadOnly: 1,
    Damage: 6,
    WildTimes: 2,
    TwoDrivers: 2,
    TwoContainers: 1,
}
"""How often each is sampled, in relation to the others."""

REAL: dict[type[Disturbance], int] = {
    KillTraining: 8,
    PowerLoss: 3,
    KillDriver: 2,
    AskToStop: 2,
    Damage: 3,
}
"""The same of real trainings, most of whose time is in the middle of a job."""

ON_RAY: dict[type[Disturbance], int] = {
    KillWorker: 5,
    KillWorkerBetweenWrites: 4,
    KillNode: 3,
    RpcFailures: 3,
    KillDriver: 3,
    AskToStop: 2,
    Damage: 1,
    DiskFillsUp: 1,
    TwoDrivers: 1,
}


def sample_disturbances(generator: random.Random, workers: int, real: bool = False) -> list[Disturbance]:
    """One to three; before those that meddle with what a run has left there is one that leaves something."""
    weights = REAL if real else ON_RAY if workers else IN_PROCESS
    kinds = generator.choices(list(weights), list(weights.values()), k=generator.choice([1, 1, 1, 2, 2, 3]))
    if kinds[0].of_what_is_there:
        kinds.insert(0, generator.choice([KillDriver, Disturbance]))
    return [kind() for kind in kinds]
