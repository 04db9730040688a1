"""Where a disturbed run takes place: its folder on a small disk of its own, and what is known of it beforehand."""

import hashlib
import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_cluster import NodesOnLoopback
from chaos_driver import Driver, DriverConfig

DISK = "256m"


@dataclass(frozen=True)
class Undisturbed:
    """What a run comes to that nobody disturbs."""

    seconds: float
    writes: int
    effects: int
    results: dict[str, str]
    """Of files: path -> what is in it, as far as it must be the same each time."""


@dataclass
class Scene:
    """One run to be disturbed, and what may be done again for it."""

    folder: Path
    """For everything; the run folder is in `disk` below it."""
    generator: random.Random
    config: DriverConfig
    undisturbed: Undisturbed
    cluster: NodesOnLoopback | None = None
    losses: int = 0
    """Workers that lost what they were doing."""
    spoilt: Counter[str] = field(default_factory=Counter)
    """Files that were damaged, by the folder's name: of a job, or of a model's evaluation."""
    journals: set[str] = field(default_factory=set)
    """Those that were looked through."""
    begun_twice: int = 0
    """Shards that a driver gave to a second worker while the first still had them, as it does with stragglers."""
    unlike: set[str] = field(default_factory=set)
    """Images and deltas with a changed bit and the time they had: made again where they are read, else not noticed."""

    @property
    def root(self) -> Path:
        return self.config.root

    @property
    def workers(self) -> int:
        return self.config.workers or 1

    def moment(self, driver: Driver) -> None:
        """Wait for a moment of the run: random by its progress, or by the clock."""
        if self.config.effects and self.generator.random() < 0.75:
            done = count_lines(self.config.effects)
            wanted = self.generator.randint(done, max(done, self.undisturbed.effects))
            until = time.monotonic() + 60
            while driver.running and time.monotonic() < until and count_lines(self.config.effects) < wanted:
                time.sleep(0.002)
            time.sleep(self.generator.uniform(0, 0.05))
        else:
            until = time.monotonic() + self.generator.uniform(0, self.undisturbed.seconds)
            while driver.running and time.monotonic() < until:
                time.sleep(0.002)

    def files(self) -> list[Path]:
        """All files of the run folder but the campaign, and the sign of a run: without it the folder is no one's."""
        kept = ("campaign.yaml", "run.json")
        return sorted(path for path in self.root.rglob("*") if path.is_file() and path.name not in kept)


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A small file system of its own at `folder`/disk, or only a folder where this user may not have one."""
    mount_point = folder / "disk"
    mount_point.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "efface-chaos", mount_point]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mount_point
    finally:
        if mounted:
            remount(mount_point, f"rw,size={DISK}")
            subprocess.run(["umount", "-l", mount_point], check=True)


def remount(mount_point: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", mount_point], check=True, capture_output=True)


def has_disks(folder: Path) -> bool:
    """Whether this user can have disks of its own, as root can in most places."""
    with disk(folder / "has-disks") as mount_point:
        return mount_point.is_mount()


def used(mount_point: Path) -> int:
    """Bytes on the disk that holds `mount_point`."""
    of = os.statvfs(mount_point)
    return (of.f_blocks - of.f_bfree) * of.f_frsize


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def results(root: Path) -> dict[str, str]:
    """Hashes of all results of a run, less the seconds that its jobs took."""
    of: dict[str, Callable[[Path], Any]] = {
        "table.parquet": Path.read_bytes,
        "scores.json": lambda path: {**json.loads(path.read_bytes()), "seconds": None},
        "leaderboard.csv": lambda path: [line.rpartition(",")[0] for line in path.read_text().splitlines()],
        "sheets/*.png": Path.read_bytes,
        "stages/*.csv": Path.read_bytes,
        "jobs/*/delta.safetensors": Path.read_bytes,
        "evaluations/*/*.parquet": Path.read_bytes,
    }
    return {
        str(path.relative_to(root)): hashlib.sha256(repr(read(path)).encode()).hexdigest()
        for pattern, read in of.items()
        for path in sorted(root.glob(pattern))
    }
