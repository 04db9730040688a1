"""Which promises the tests would miss: `python -m benchmarks.mutants [--group GROUP] [--only NAME …] [--chaos]`.

Each mutant (`benchmarks/*_mutants.py`) breaks one promise in a copy of the sources, and names the tests that must fail
then. They run on the unchanged copy first, where all of them must pass (`--passing`: where that is known already). A
mutant whose text is not found exactly once, or whose tests cannot run, is an error. `--chaos` tries the disturbances
that should see it too. Exit code 1 where a mutant survives its tests. Writes benchmarks/results/mutants-GROUP.json,
unless only some of a list were tried.
"""

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base_mutants import BASE_MUTANTS
from benchmarks.mutant import Mutant
from benchmarks.output_mutants import OUTPUT_MUTANTS
from benchmarks.record import write_result
from benchmarks.result_mutants import RESULT_MUTANTS
from benchmarks.run_mutants import RUN_MUTANTS
from benchmarks.stranger_mutants import STRANGER_MUTANTS
from benchmarks.work_mutants import WORK_MUTANTS

ROOT = Path(__file__).parents[1]
TESTED_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""Tests send them to themselves, which ends a process that does not handle them."""
TIMEOUT = 1800.0
"""Seconds that the tests of one mutant may take."""

LIBRARIES = (
    *(
        "torch",
        "accelerate",
        "ray",
        "pyarrow.compute",
        "pyarrow.parquet",
        "optuna",
        "typer",
        "rich.table",
        "hypothesis",
    ),
    *("transformers.models.clip", "transformers.models.resnet", "diffusers.pipelines.stable_diffusion"),
    *("diffusers.schedulers", "fsspec", "omegaconf", "safetensors.torch"),
)

T_CHAOS = "tests/cluster/test_chaos.py"

GROUPS = {
    "run": RUN_MUTANTS,
    "work": WORK_MUTANTS,
    "output": OUTPUT_MUTANTS,
    "base": BASE_MUTANTS,
    "result": RESULT_MUTANTS,
    "stranger": STRANGER_MUTANTS,
}


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
    """Run some tests in a copy; the ids of those that failed. Raises RuntimeError where they could not be run.

    They run in a fork of this process, which has imported the libraries already: most of their time would be that.
    """
    options = ["-q", "-x", "-rfE", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
    arguments = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", tests)]
    log = folder / ".pytest.log"
    process = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(folder, log, options + arguments))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        return [f"none ended within {TIMEOUT / 60:g} minutes"]
    said = log.read_text(errors="replace")
    if -(process.exitcode or 0) in TESTED_SIGNALS or (process.exitcode == 2 and "KeyboardInterrupt" in said):
        return [f"{tests}: ended by a signal"]
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    if process.exitcode not in (0, 1) or (process.exitcode == 1) != bool(failed):
        raise RuntimeError(f"pytest {tests}: exit code {process.exitcode}\n{said[-4000:]}")
    return failed


def import_libraries() -> None:
    """Import what the tests import, but nothing of efface."""
    for name in LIBRARIES:
        importlib.import_module(name)


def _run_pytest(folder: Path, log: Path, arguments: list[str]) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(folder)
    os.environ.update(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("efface", "benchmarks")]:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    sys.dont_write_bytecode = True
    code = int(pytest.main(arguments))
    sys.stdout.flush()
    os._exit(code)


def mutate(folder: Path, mutant: Mutant) -> None:
    """Make its change in a copy. Raises RuntimeError where its text is not there once."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise RuntimeError(f"{mutant.name}: its text stands {text.count(mutant.old)} times in {mutant.file}, not once")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def joined(suites: Iterable[str]) -> list[str]:
    """All of them, those of the same files as one."""
    expressions: dict[str, list[str]] = {}
    for suite in sorted(suites):
        files, _, expression = suite.partition(" -k ")
        expressions.setdefault(files, []).append(expression.strip("'"))
    return [
        f"{files} -k '{' or '.join(f'({each})' for each in found)}'" if all(found) else files
        for files, found in expressions.items()
    ]


def try_all(mutants: list[Mutant], chaos: bool, passing: bool) -> dict[str, dict[str, Any]]:
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
        for tests in [] if passing else joined(suites):
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
    parser.add_argument("--group", choices=GROUPS, help="those of one list")
    parser.add_argument("--only", nargs="+", help="words of the names of some mutants")
    parser.add_argument("--passing", action="store_true", help="the tests are known to pass on the unchanged sources")
    parser.add_argument("--chaos", action="store_true", help="try the disturbances too")
    args = parser.parse_args()
    groups = [args.group] if args.group else list(GROUPS)
    import_libraries()
    survivors = [name for group in groups for name in try_group(group, args.only, args.chaos, args.passing)]
    sys.exit(bool(survivors))


def try_group(group: str, only: list[str] | None, chaos: bool, passing: bool) -> list[str]:
    """Try the mutants of a list, and write what caught them; the names of those that survive."""
    mutants = [m for m in GROUPS[group] if not only or any(word in m.name for word in only)]
    start = time.monotonic()
    found = try_all(mutants, chaos, passing)
    survivors = [name for name, caught in found.items() if not caught["tests"]]
    print(f"{group}: {len(found)} mutants, {len(survivors)} survive: {', '.join(survivors) or 'none'}")
    if not only:
        minutes = round((time.monotonic() - start) / 60, 1)
        measured = {"mutants": len(found), "survivors": survivors, "caught": found}
        print(write_result(f"mutants-{group}", measured, minutes=minutes))
    return survivors


if __name__ == "__main__":
    main()
