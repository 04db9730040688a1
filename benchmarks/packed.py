"""Jobs in a pack beside the same jobs alone; `python -m benchmarks.packed [--method esd] [--jobs 8] [--json]`.

Both train the same jobs in the same run, each of another concept and seed. On a CPU the miniature in one thread and
seconds of the processor; on a GPU Stable Diffusion v1.4 in every shape with random weights, and the clock. "difference"
is the largest between two deltas of one job, relative to the change.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_device import BASES, show
from benchmarks.trainings import concepts_for, in_packs, largest_difference, make_jobs, one_by_one, timed
from efface.models.base import load_base

METHODS = ("esd", "ca", "fade", "spm", "sdd")


def measure(device: str, method: str, count: int, steps: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    base, concepts = load_base(BASES[device], device), concepts_for(device)
    length = {"samples_seen": 8 * steps} if method == "ca" else {"steps": steps}
    jobs = make_jobs(base, concepts, method, count, **length)
    in_packs(make_jobs(base, concepts, method, 1, **length), base, concepts)  # warms up
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        alone, deltas = timed(lambda: one_by_one(jobs, base, concepts, Path(first)), base.device)
        packed, again = timed(lambda: in_packs(jobs, base, concepts, Path(second)), base.device)
    return {
        "speedup": alone / packed,
        "seconds": {"alone": alone, "packed": packed},
        "difference": largest_difference(deltas, again, base),
        "method": method,
        "jobs": count,
        "steps": steps,
        "base": base.spec.name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=sorted(BASES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--method", choices=METHODS, default="esd")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of each")
    parser.add_argument("--json", action="store_true", help="print one object and nothing else")
    args = parser.parse_args()
    measured = measure(args.device, args.method, args.jobs, args.steps)
    seconds = measured["seconds"]
    line = (
        f"{args.jobs} jobs of {args.method}, {args.steps} steps: {seconds['alone']:.1f} s alone, "
        f"{seconds['packed']:.1f} s packed, {measured['speedup']:.2f} times as fast; "
        f"deltas differ by {measured['difference']:.1e}"
    )
    show(f"packed-{args.method}", args, torch.device(args.device), measured, [line])


if __name__ == "__main__":
    main()
