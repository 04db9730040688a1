"""A campaign of ESD-x, packed and with shared or stored roll-outs, beside ESD's own script one concept at a time.

`python -m benchmarks.rollouts [--jobs 20] [--steps 8] [--shared 8] [--precision fp32] [--json]`

    script      on-policy as the paper's script has it: a job after the other, a roll-out for each step
    alone       the same jobs by `run_job`
    packed      the same jobs in a pack: on-policy, and the same deltas but for rounding
    shared      in a pack, `steps_per_rollout` steps to each roll-out: another recipe, named in the jobs
    stored      off-policy in a pack, for the second variant of a campaign: it finds the roll-outs of the first

A job's steps all cost alike on average, so a campaign's time is that of the steps measured times their number; the
script and `alone` are measured on a few of the jobs. "speedup" is script over shared. On a CPU the miniature in one
thread and seconds of the processor; on a GPU Stable Diffusion v1.4 in every shape with random weights, and the clock.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_device import BASES, matmul_tflops, show, use_line, use_of_device
from benchmarks.trainings import concepts_for, esd_as_scripted, in_packs, make_jobs, one_by_one, step_tflop, timed
from efface.models.base import load_base

SAMPLED_JOBS = 2
"""How many jobs of the loops that take one after another are measured; a concept costs as much as another."""


def measure(device: str, count: int, steps: int, shared: int, precision: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    base, concepts = load_base(BASES[device], device), concepts_for(device)

    def jobs(jobs: int = count, **config: Any) -> Any:
        return make_jobs(base, concepts, "esd", jobs, steps=steps, precision=precision, **config)

    in_packs(jobs(1)[:1], base, concepts)  # warms up
    few, sampled = jobs(SAMPLED_JOBS), count / SAMPLED_JOBS

    def scripted() -> None:
        for job in few:
            phrase = concepts.find(job.concepts[0]).phrase
            esd_as_scripted(base, phrase, job.config, steps, job.seed)

    seconds = {
        "script": timed(scripted, base.device)[0] * sampled,
        "alone": timed(lambda: one_by_one(few, base, concepts), base.device)[0] * sampled,
        "packed": timed(lambda: in_packs(jobs(), base, concepts), base.device)[0],
        "shared": timed(lambda: in_packs(jobs(steps_per_rollout=shared), base, concepts), base.device)[0],
    }
    with tempfile.TemporaryDirectory() as cache:
        in_packs(jobs(on_policy=False), base, concepts, Path(cache))
        variant = jobs(on_policy=False, eta=2.0)
        seconds["stored"] = timed(lambda: in_packs(variant, base, concepts, Path(cache)), base.device)[0]
    ceiling = matmul_tflops(base.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    tflop = dict.fromkeys(("script", "alone", "packed"), step_tflop(few[0], base))
    tflop["shared"] = step_tflop(jobs(1, steps_per_rollout=shared)[0], base)
    used = {name: use_of_device(count * steps * each, seconds[name], ceiling) for name, each in tflop.items()}
    return {
        "speedup": seconds["script"] / seconds["shared"],
        **used["packed"],
        "use_of_device": used,
        "speedups": {name: seconds["script"] / taken for name, taken in seconds.items()},
        "seconds_per_job_and_step": {name: taken / count / steps for name, taken in seconds.items()},
        "sampled_jobs_of_script_and_alone": SAMPLED_JOBS,
        "jobs": count,
        "steps": steps,
        "steps_per_rollout": shared,
        "precision": precision,
        "base": base.spec.name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(BASES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps of each, a multiple of --shared")
    parser.add_argument("--shared", type=int, default=8, help="steps that share a roll-out")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of efface's jobs; the script's is fp32"
    )
    parser.add_argument("--json", action="store_true", help="print one object and nothing else")
    args = parser.parse_args()
    measured = measure(args.device, args.jobs, args.steps, args.shared, args.precision)
    lines = [
        f"{args.jobs} concepts by ESD-x, {args.steps} steps each",
        *(
            f"{name:9}{taken * 1000:9.1f} ms a job and step, {measured['speedups'][name]:.2f} x the script's speed"
            for name, taken in measured["seconds_per_job_and_step"].items()
        ),
        *(f"{name:9}{use_line(used)}" for name, used in measured["use_of_device"].items()),
    ]
    show("rollouts", args, torch.device(args.device), measured, lines)


if __name__ == "__main__":
    main()
