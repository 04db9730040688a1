"""Which promises the tests would miss: `python -m benchmarks.mutants [--only NAME …] [--chaos]`.

Each mutant breaks one promise of the run folder, the lease or the command in a copy of the sources, and names the tests
that must fail then. They run on the unchanged copy first, where all of them must pass. A mutant whose text is not found
exactly once, or whose tests cannot run, is an error. `--chaos` tries the disturbances that should see it too. Exit code
1 where a mutant survives its tests. Writes benchmarks/results/mutants.json, unless only some were tried.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import write_result

ROOT = Path(__file__).parents[1]
LEASE, FILES, RUN_FOLDER = "cluster/storage/lease.py", "efface/files.py", "cluster/storage/run_folder.py"
T_LEASE, T_FILES, T_GC = "tests/cluster/test_lease.py", "tests/test_files.py", "tests/cluster/test_gc.py"
T_STOP, T_DAMAGE, T_LIMITS = (f"tests/cluster/test_{name}.py" for name in ("stopping", "silent_damage", "limits"))
T_RAY, T_CHAOS = "tests/cluster/test_ray_session.py", "tests/cluster/test_chaos.py"


@dataclass(frozen=True)
class Mutant:
    """A change of the sources that breaks a promise."""

    name: str
    file: str
    old: str
    """What stands in the file, once."""
    new: str
    tests: str
    """Arguments to pytest: fast tests of which one must fail."""
    chaos: str = ""
    """Ids of trials in tests/cluster/test_chaos.py that should fail too, as one expression of `-k`."""


MUTANTS = (
    # files
    Mutant(
        "files are written in place",
        FILES,
        "    with _temporary_file(path, data) as name:\n        os.replace(name, path)\n",
        "    path.parent.mkdir(parents=True, exist_ok=True)\n    path.write_bytes(data)\n",
        T_FILES,
        "PowerLoss",
    ),
    Mutant(
        "content is not synced",
        FILES,
        "            os.fsync(file.fileno())\n",
        "",
        f"{T_FILES} -k content_is",
        "PowerLoss",
    ),
    Mutant("names are not synced", FILES, "            os.fsync(handle)\n", "            pass\n", T_FILES, "PowerLoss"),
    Mutant(
        "names of new folders are not synced",
        FILES,
        "            _sync_folder(made.parent)\n",
        "            pass\n",
        T_FILES,
        "PowerLoss",
    ),
    Mutant("a creation overwrites", FILES, "_link(name, path)\n", "os.replace(name, path)\n", T_FILES, "TwoDrivers"),
    Mutant("hard links are needed", FILES, "if error.errno not in NO_HARD_LINKS:", "if True:", T_FILES),
    Mutant(
        "a folder that is a file counts as a file that exists",
        FILES,
        "        raise NotADirectoryError(errno.ENOTDIR",
        "        raise FileExistsError(errno.EEXIST",
        T_FILES,
    ),
    Mutant(
        "a store that is away is not tried again",
        "efface/storage_retry.py",
        "if not is_transient(error) or time.monotonic() + delay > deadline:",
        "if True:",
        "tests/test_storage_retry.py",
    ),
    Mutant(
        "an error that may pass says it stays",
        "efface/errors.py",
        "    exit_code = 75\n",
        "    exit_code = 2\n",
        f"{T_FILES} -k try_again",
        "FullDisk or ReadOnly",
    ),
    # the lease
    Mutant(
        "a lost lease is not noticed",
        LEASE,
        "if _holder(self._folder).number != self._number:\n                        self.lost",
        "if False:\n                        self.lost",
        T_LEASE,
        "Stall",
    ),
    Mutant(
        "the driver does not heed that its lease is lost",
        "cluster/run.py",
        "        if lease.lost:\n",
        "        if False:\n",
        f"{T_LEASE} -k loses_its_lease",
    ),
    Mutant(
        "the heartbeat does not beat",
        LEASE,
        "            self._heartbeats += 1\n",
        "",
        f"{T_LEASE} -k heartbeat",
        "TwoContainers",
    ),
    Mutant(
        "process ids of other containers are looked up",
        "cluster/storage/process.py",
        'for name in ("host", "boot", "namespaces"))',
        'for name in ("host", "boot"))',
        f"{T_LEASE} -k 'process_table or container'",
    ),
    Mutant(
        "a process that cannot be looked at is dead",
        "cluster/storage/process.py",
        "    return None if started is None else",
        "    return False if started is None else",
        f"{T_LEASE} -k looked_at",
    ),
    Mutant(
        "a damaged lease is taken over at once",
        LEASE,
        "    deadline = time.monotonic() + heartbeat_timeout\n",
        "    deadline = time.monotonic() + (heartbeat_timeout if holder.content else 0)\n",
        f"{T_LEASE} -k damaged",
    ),
    Mutant(
        "a lost answer makes a driver refuse itself",
        LEASE,
        "            create_exclusive(self._file(self._number), json",
        "            return create_exclusive(self._file(self._number), json",
        f"{T_LEASE} -k loses_its_answer",
    ),
    Mutant(
        "a worker does not look for the driver's run folder",
        LEASE,
        "    if lease_id is None:\n        return\n    deadline",
        "    return\n    deadline",
        f"{T_LEASE} -k 'worker'",
    ),
    # what is done, and done again
    Mutant(
        "an output's size is not compared",
        "cluster/storage/records.py",
        "if found is None or found.size != written.bytes:",
        "if found is None:",
        "tests/cluster/test_run_folder.py",
        "Damage",
    ),
    Mutant(
        "an output newer than its record is not hashed",
        "cluster/storage/records.py",
        "if found.changed > of_record.changed and",
        "if False and",
        "tests/cluster/test_run_in_process.py -k damaged_file",
        "Damage",
    ),
    Mutant(
        "a delta is not verified",
        RUN_FOLDER,
        "    if written is None or written.sha256 != sha256(delta):",
        "    if written is None:",
        f"{T_DAMAGE} -k delta",
    ),
    Mutant(
        "verdicts are not verified",
        "cluster/report.py",
        "    _check(folder, records, [(shard, [VERDICTS]) for shard in shards])\n",
        "",
        f"{T_DAMAGE} -k gathered",
    ),
    Mutant(
        "images of sheets are not verified",
        "cluster/report.py",
        "            _check(folder, records, [(shard, [IMAGES]) for shard in having])\n",
        "            pass\n",
        f"{T_DAMAGE} -k gathered",
    ),
    Mutant(
        "a full disk fails the job",
        "cluster/workers/worker.py",
        "        except StorageError as error:\n            return Outcome.storage(str(error), log.getvalue())\n",
        "",
        "tests/cluster/test_object_store.py -k blame",
    ),
    Mutant(
        "a full disk fails the job that the driver sees",
        "cluster/scheduler/dispatch.py",
        "        if outcome.next is Next.ABORT:\n            self._storage_error = outcome.reason\n",
        "",
        f"{T_LIMITS} -k cannot_be_written",
        "FullDisk",
    ),
    Mutant(
        "there is no limit on losses and errors",
        "cluster/scheduler/dispatch.py",
        "< outcome.attempts\n",
        "< 100\n",
        f"{T_LIMITS} -k 'without_end or every_time'",
    ),
    # signals, output and exit codes
    Mutant(
        "a closed terminal ends a run",
        "cluster/signals.py",
        "(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
        "(signal.SIGINT, signal.SIGTERM)",
        f"{T_STOP} -k 'hang_up or terminal'",
        "AskToStop",
    ),
    Mutant(
        "a second signal of a closed terminal interrupts",
        "cluster/signals.py",
        "if number != signal.SIGHUP and any(earlier != signal.SIGHUP for earlier in signals):",
        "if signals:",
        f"{T_STOP} -k 'hang_up or log_out'",
    ),
    Mutant(
        "an early interrupt ends in a traceback",
        "efface/__main__.py",
        "    if heeds_interrupts:\n        signal.signal(signal.SIGINT, leave)\n    from",
        "    from",
        "tests/launch/test_entry.py -k first_second",
    ),
    Mutant(
        "a run fails with its output",
        "launch/output_streams.py",
        "            self.error = self.error or error\n",
        "            raise\n",
        "tests/launch/test_entry.py -k 'does_not_depend'",
    ),
    Mutant(
        "SLURM does not queue again what may succeed later",
        "launch/submit/templates/slurm/requeue.sh.j2",
        " || $code -eq 75",
        "",
        "tests/launch/submit/test_slurm_scripts.py -k queued_again",
    ),
    # what is removed, and who may read
    Mutant(
        "gc removes every hidden file",
        "cluster/storage/gc.py",
        "if is_temporary(path.name) and",
        'if path.name.startswith(".") and',
        T_GC,
    ),
    Mutant(
        "gc removes all of the cache",
        "cluster/storage/gc.py",
        "if CACHE_FILES.fullmatch(file.name))",
        "if file.name)",
        T_GC,
    ),
    Mutant(
        "gc follows links",
        "cluster/storage/gc.py",
        "return [] if folder.is_symlink() else [",
        "return [",
        f"{T_GC} -k links",
    ),
    Mutant(
        "gc needs room",
        "cluster/storage/gc.py",
        "except NoSpaceError:",
        "except ZeroDivisionError:",
        f"{T_GC} -k full_disk",
    ),
    Mutant(
        "the user's own campaign file is rewritten",
        "cluster/storage/opening.py",
        "        _check_nothing_is_lost(paths, config_file)\n",
        "",
        f"{T_GC} -k no_run_wrote",
    ),
    Mutant(
        "Ray's folder is open to everybody",
        "cluster/workers/ray_session.py",
        "(made.st_uid, made.st_mode & 0o777) == (os.geteuid(), 0o700)",
        "made",
        f"{T_RAY} -k permissions",
    ),
    Mutant(
        "Ray's token is open to everybody",
        "cluster/workers/ray_token.py",
        "        path.chmod(0o600)\n",
        "        pass\n",
        T_RAY,
    ),
    Mutant(
        "whatever listens at an address is a Ray",
        "cluster/workers/ray_probe.py",
        "    return len(frame) == 9 and frame[3] == SETTINGS\n",
        "    return True\n",
        f"{T_RAY} -k no_ray",
    ),
)


def copy_sources(folder: Path) -> None:
    """The files of this repository as they are now, without what git ignores."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_symlink() | (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def failed_tests(folder: Path, tests: str) -> list[str]:
    """Run some tests in a copy; the ids of those that failed. Raises RuntimeError where they could not be run."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "-m", "not slow", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", tests)]
    try:
        done = subprocess.run(
            [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
    except subprocess.TimeoutExpired:
        return ["none ended within 15 minutes"]
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode == 1) != bool(failed):
        raise RuntimeError(f"pytest {tests}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed


def mutate(folder: Path, mutant: Mutant) -> None:
    """Make its change in a copy. Raises RuntimeError where its text is not there once."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise RuntimeError(f"{mutant.name}: its text stands {text.count(mutant.old)} times in {mutant.file}, not once")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def try_all(mutants: list[Mutant], chaos: bool) -> dict[str, dict[str, Any]]:
    """What caught each mutant."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        folder = Path(scratch)
        copy_sources(folder)
        for mutant in mutants:
            mutate(folder, mutant)  # all are checked before anything runs
            shutil.copy2(ROOT / mutant.file, folder / mutant.file)
        suites = {mutant.tests for mutant in mutants}
        suites |= {f"{T_CHAOS} -k '{mutant.chaos}'" for mutant in mutants if chaos and mutant.chaos}
        for tests in sorted(suites):
            print(f"unchanged: {tests}", flush=True)
            if failed := failed_tests(folder, tests):
                raise RuntimeError(f"{tests}: {failed[0]} fails on the unchanged sources, so it shows nothing")
        for mutant in mutants:
            mutate(folder, mutant)
            caught: dict[str, Any] = {"file": mutant.file, "tests": failed_tests(folder, mutant.tests)}
            if chaos and mutant.chaos:
                caught["chaos"] = failed_tests(folder, f"{T_CHAOS} -k '{mutant.chaos}'")
            shutil.copy2(ROOT / mutant.file, folder / mutant.file)
            found[mutant.name] = caught
            by = ", ".join(caught["tests"]) or "NOTHING"
            print(f"{mutant.name}: caught by {by}", flush=True)
            if "chaos" in caught:
                print(f"    in chaos by {', '.join(caught['chaos']) or 'nothing'}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="words of the names of some mutants")
    parser.add_argument("--chaos", action="store_true", help="try the disturbances too")
    args = parser.parse_args()
    mutants = [m for m in MUTANTS if not args.only or any(word in m.name for word in args.only)]
    start = time.monotonic()
    found = try_all(mutants, args.chaos)
    survivors = [name for name, caught in found.items() if not caught["tests"]]
    print(f"{len(found)} mutants, {len(survivors)} survive: {', '.join(survivors) or 'none'}")
    if not args.only:
        minutes = round((time.monotonic() - start) / 60, 1)
        print(
            write_result("mutants", {"mutants": len(found), "survivors": survivors, "caught": found}, minutes=minutes)
        )
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
