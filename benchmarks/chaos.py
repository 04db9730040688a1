"""Runs that are disturbed in every way and must come to the same; `python benchmarks/chaos.py --runs 200 --seed 0`.

What goes wrong, and what must hold then, is in `tests/cluster/chaos_*.py` and told in docs/chaos.md. `--real N`: N runs
more with the real miniature instead of stand-ins. `--only K` repeats one run and writes nothing. Needs root on Linux,
for disks of its own. Writes benchmarks/results/chaos.json; about 25 minutes on one core.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import write_result

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

from chaos_trial import Report, Trials

CAMPAIGNS, REAL_CAMPAIGNS = 20, 2
"""Different ones that are drawn."""

RAY_WORKERS = 2


def trials(folder: Path, seed: int, first: int, runs: int, on_ray: int) -> Iterator[Report]:
    """`runs` in process, the first of them number `first`, and `on_ray` by two Ray workers."""
    with Trials(folder, seed, CAMPAIGNS) as drawn:
        for number in range(first, first + runs):
            yield drawn.run(number, 0)
        for number in range(first, first + on_ray):
            yield drawn.run(number, RAY_WORKERS)


def real_trials(folder: Path, seed: int, first: int, runs: int) -> Iterator[Report]:
    with Trials(folder, seed, REAL_CAMPAIGNS, real=True) as drawn:
        for number in range(first, first + runs):
            yield drawn.run(number, 0)


def summed(reports: list[Report]) -> dict[str, Any]:
    """Counts over all runs, by disturbance where that tells more."""
    total = {
        "runs": len(reports),
        "wrong": sum(bool(report.wrong) for report in reports),
        **{key: sum(getattr(report, key) for report in reports) for key in ("starts", "rows", "wrong_rows", "losses")},
        "shards_again": sum(report.shards_again for report in reports),
        "steps_again": sum(report.steps_again for report in reports),
        "refusals": sum(report.refusals for report in reports),
        "seconds": round(sum(report.seconds for report in reports)),
    }
    names = Counter(name for report in reports for name in report.names)
    found = [f"{report.number} ({' + '.join(report.names)}): {'; '.join(report.wrong)}" for report in reports]
    return {**total, "disturbances": dict(names.most_common()), "found": [f for f in found if not f.endswith(": ")]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--ray", type=int, default=30, help="so many of the runs are on Ray")
    parser.add_argument("--real", type=int, default=0, help="runs of the real miniature besides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this run alone")
    given = parser.parse_args()
    on_ray = min(given.ray, given.runs)
    first, runs, real = given.only or 0, given.runs - on_ray, given.real
    if given.only is not None:
        runs, on_ray, real = (min(1, count) for count in (runs, on_ray, real))
    found: dict[str, list[Report]] = {"in process": [], "on Ray": [], "real": []}
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        os.mkdir(f"{folder}/real")
        for report in trials(Path(folder), given.seed, first, runs, on_ray):
            print(report, flush=True)
            found["on Ray" if report.workers else "in process"].append(report)
        for report in real_trials(Path(folder, "real"), given.seed, first, real):
            print(report, flush=True)
            found["real"].append(report)
    measured = {name: summed(reports) for name, reports in found.items() if reports}
    for name, total in measured.items():
        print(f"{name}: {', '.join(f'{value} {key}' for key, value in total.items() if isinstance(value, int))}")
    if given.only is None:
        print(write_result("chaos", measured, seed=given.seed, minutes=round((time.monotonic() - start) / 60, 1)))
    sys.exit(any(total["wrong"] for total in measured.values()))


if __name__ == "__main__":
    main()
