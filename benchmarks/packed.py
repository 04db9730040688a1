"""Jobs in a pack beside the same jobs alone; `python -m benchmarks.packed [--method esd] [--jobs 8] [--json]`.

Both train the same jobs in the same run, each of another concept and seed; for ESD the paper's own script stands
beside, a few jobs one after the other. TFLOP/s count the optimiser steps with their roll-outs and teachers. On a CPU
the miniature in one thread and seconds of the processor; on a GPU Stable Diffusion v1.4 in every shape with random
weights, and the clock. "difference" is the largest between two deltas of one job, relative to the change.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_device import BASES, matmul_tflops, show, use_line, use_of_device
from benchmarks.trainings import (
    concepts_for,
    esd_as_scripted,
    in_packs,
    largest_difference,
    make_jobs,
    one_by_one,
    step_tflop,
    timed,
)
from efface.models.base import load_base

SAMPLED_JOBS = 2
"""How many jobs the script is measured on; a concept costs as much as another."""
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
    seconds = {"alone": alone, "packed": packed}
    if method == "esd":
        few = jobs[:SAMPLED_JOBS]

        def scripted() -> None:
            for job in few:
                esd_as_scripted(base, concepts.find(job.concepts[0]).phrase, job.config, steps, job.seed)

        seconds["script"] = timed(scripted, base.device)[0] * count / len(few)
    tflop = count * steps * step_tflop(jobs[0], base)
    return {
        "speedup": alone / packed,
        "speedup_over_script": seconds["script"] / packed if "script" in seconds else None,
        "seconds": seconds,
        **use_of_device(tflop, packed, matmul_tflops(base.device, torch.float32)),
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
    over = measured["speedup_over_script"]
    lines = [line, *([f"{over:.2f} times as fast as the paper's script"] if over else []), use_line(measured)]
    show(f"packed-{args.method}", args, torch.device(args.device), measured, lines)


if __name__ == "__main__":
    main()
