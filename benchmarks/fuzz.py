"""10,000 generated files a reader; `python -m benchmarks.fuzz` writes benchmarks/results/fuzz.json, in some minutes.

The strategies and what must hold are in `tests/fuzz/readers.py`. `--reader NAME` tries one reader and writes nothing.
"""

import argparse
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from benchmarks.record import write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fuzz"))

from readers import FUZZ_TARGETS, FuzzTarget


def fuzz(reader: FuzzTarget, examples: int, first: int) -> dict[str, Any]:
    """Counts of files that were accepted and refused, the longest time of one, and what failed if anything did."""
    counts: Counter[str] = Counter()
    longest = 0.0

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=HealthCheck)
    @seed(first)
    @given(reader.drawn)
    def holds(drawn: Any) -> None:
        nonlocal longest
        start = time.perf_counter()
        counts["accepted" if reader(drawn) else "refused"] += 1
        longest = max(longest, time.perf_counter() - start)

    start, failure = time.perf_counter(), None
    try:
        holds()
    except Exception:
        failure = traceback.format_exc()
    seconds = time.perf_counter() - start
    found = {"accepted": counts["accepted"], "refused": counts["refused"], "failed": failure is not None}
    print(f"{reader.name}: {found}, {seconds:.0f} s, the longest {longest:.2f} s", flush=True)
    if failure:
        print(failure)
    return {**found, "seconds": round(seconds, 1), "longest": round(longest, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=[reader.name for reader in FUZZ_TARGETS])
    args = parser.parse_args()
    wanted = [reader for reader in FUZZ_TARGETS if args.reader in (None, reader.name)]
    measured = {reader.name: fuzz(reader, args.examples, args.seed) for reader in wanted}
    if not args.reader:
        print(write_result("fuzz", measured, examples=args.examples, seed=args.seed))
    raise SystemExit(any(found["failed"] for found in measured.values()))


if __name__ == "__main__":
    main()
