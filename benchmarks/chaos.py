"""Runs that are disturbed in every way and must come to the same; `python -m benchmarks.chaos --runs 200 --seed 0`.

What goes wrong, and what must hold then, is in `tests/cluster/chaos_*.py` and docs/chaos.md. `--ray N`: so many of
them by two Ray workers. `--real N`: instead of all that, N runs of the real miniature. `--only K` repeats one run of
each kind and writes nothing. Needs root on Linux, for disks of its own. Writes benchmarks/results/chaos-here.json,
chaos-ray.json and chaos-real.json; half an hour on two cores.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from benchmarks.record import write_result

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

from chaos_trial import ChaosRuns, Report

CAMPAIGNS, REAL_CAMPAIGNS = 20, 2
"""How many different ones are sampled."""

RAY_WORKERS = 2


@dataclass(frozen=True)
class Group:
    """Trials that go one after the other, beside those of other groups."""

    name: str
    numbers: range
    workers: int = 0
    real: bool = False

    def run(self, folder: Path, seed: int, reports: "Queue[tuple[str, Report | None]]") -> None:
        """In a process of its own; what it comes to goes into the queue, and None at the end."""
        try:
            with ChaosRuns(folder, seed, REAL_CAMPAIGNS if self.real else CAMPAIGNS, self.real) as chaos_runs:
                for number in self.numbers:
                    reports.put((self.name, chaos_runs.run(number, self.workers)))
        finally:
            reports.put((self.name, None))


def run_all(groups: list[Group], seed: int) -> dict[str, list[Report]]:
    """The reports of each group."""
    found: dict[str, list[Report]] = {group.name: [] for group in groups}
    fork = multiprocessing.get_context("fork")
    reports: Queue[tuple[str, Report | None]] = fork.Queue()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for group in groups:
            group_folder = Path(folder, group.name)
            group_folder.mkdir()
            fork.Process(target=group.run, args=(group_folder, seed, reports)).start()
        under_way = len(groups)
        while under_way:
            name, report = reports.get()
            if report is None:
                under_way -= 1
                continue
            print(f"{name:5} {report}", flush=True)
            found[name].append(report)
        for process in multiprocessing.active_children():
            process.join()
    return found


def summed(reports: list[Report]) -> dict[str, Any]:
    """Counts over all runs, by disturbance where that tells more."""
    counts = ("starts", "rows", "wrong_rows", "losses", "shards_again", "steps_again", "half_trained", "refusals")
    total: dict[str, Any] = {"runs": len(reports), "wrong": sum(bool(report.wrong) for report in reports)}
    for name in counts:
        counted = [value for report in reports if (value := getattr(report, name)) is not None]
        if counted:
            total[name] = sum(counted)
    total["seconds"] = round(sum(report.seconds for report in reports))
    names = Counter(name for report in reports for name in report.names)
    found = [f"{report.number} ({' + '.join(report.names)}): {'; '.join(report.wrong)}" for report in reports]
    return {**total, "disturbances": dict(names.most_common()), "found": [f for f in found if not f.endswith(": ")]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--ray", type=int, default=30, help="so many of the runs are on Ray")
    parser.add_argument("--real", type=int, default=0, help="runs of the real miniature, and no others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this run alone")
    args = parser.parse_args()

    def numbers(runs: int) -> range:
        return range(runs) if args.only is None or not runs else range(args.only, args.only + 1)

    groups = [
        Group("here", numbers(args.runs - args.ray)),
        Group("ray", numbers(args.ray), workers=RAY_WORKERS),
    ]
    if args.real:
        groups = [Group("real", numbers(args.real), real=True)]
    start = time.monotonic()
    groups = [group for group in groups if group.numbers]
    found = run_all(groups, args.seed)
    ended_early = [group.name for group in groups if len(found[group.name]) < len(group.numbers)]
    if ended_early:
        sys.exit(f"broken, and not all were run: {', '.join(ended_early)}")
    minutes = round((time.monotonic() - start) / 60, 1)
    measured = {name: summed(reports) for name, reports in found.items()}
    for name, total in measured.items():
        print(f"{name}: {', '.join(f'{value} {key}' for key, value in total.items() if isinstance(value, int))}")
        if args.only is None:
            print(write_result(f"chaos-{name}", total, seed=args.seed, minutes=minutes))
    sys.exit(any(total["wrong"] for total in measured.values()))


if __name__ == "__main__":
    main()
