"""What each method takes of a GPU at the size of Stable Diffusion v1.4; `python -m benchmarks.memory`.

Estimated without a GPU, as `efface doctor` does (`train/cost/memory.py`). Prints the tables of docs/hardware.md and
writes benchmarks/results/memory.json. A minute or two on one core.

`python -m benchmarks.memory --measure` measures an optimiser step of each method on a GPU
(`train/cost/measured_memory.py`), each in a process of its own, beside the estimate. Writes
benchmarks/results/memory-DEVICE.json.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.record import write_result
from efface.concepts.concept import load_concept_set
from efface.files import slug
from efface.models.base import load_base, read_base
from efface.models.shapes import model_shapes
from efface.train.cost.flops import image_flops, step_flops
from efface.train.cost.measured_memory import CudaPeak, measured_peak
from efface.train.cost.memory import Memory, estimate_memory
from efface.train.method import GradientMethod, Method, get_method, parse_config
from efface.train.trainer.options import TrainingOptions

PROCESS_COUNTS = (1, 2, 4, 8)
RATES = (10, 40, 80)
"""TFLOP/s that a GPU may sustain; see docs/hardware.md."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "uce": ("uce", {}),
    "esd (x)": ("esd", {}),
    "esd (u)": ("esd", {"variant": "u"}),
    "ca": ("ca", {}),
    "fade": ("fade", {}),
}
CHECKPOINTING = TrainingOptions(gradient_checkpointing=True)
WAYS = {
    "fp32": ("fp32", TrainingOptions()),
    "fp32, checkpointing": ("fp32", CHECKPOINTING),
    "bf16": ("bf16", TrainingOptions()),
    "bf16, checkpointing": ("bf16", CHECKPOINTING),
}
SPLITS = {
    "DDP": None,
    "ZeRO-1": "zero1",
    "ZeRO-2": "zero2",
    "ZeRO-2, offload": "zero2-offload",
    "ZeRO-3": "zero3",
    "ZeRO-3, offload": "zero3-offload",
}
BASE = read_base("sd-v1-4-random")
SHAPES = model_shapes(BASE)


def method(label: str, precision: str = "fp32") -> Method:
    """A method as its paper has it, but for the precision."""
    name, config = METHODS[label]
    return get_method(name)(parse_config(name, config if name == "uce" else {**config, "precision": precision}))


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def by_method() -> dict[str, dict[str, Memory]]:
    """Peaks on one GPU with the batch of the paper, and what they consist of in fp32."""
    found = {
        label: {
            way: estimate_memory(method(label, precision), SHAPES, options)
            for way, (precision, options) in WAYS.items()
        }
        for label in METHODS
    }
    batches = {label: str(getattr(method(label).config, "batch_size", "-")) for label in METHODS}
    table(
        ["method", "batch", *WAYS],
        [[f"`{label}`", batches[label], *(gb(one.peak) for one in ways.values())] for label, ways in found.items()],
    )
    parts = ("base", "models", "preparation", "states", "activations")
    rows = [[f"`{label}`", *(gb(getattr(ways["fp32"], part)) for part in parts)] for label, ways in found.items()]
    table(["method", *parts], rows)
    return found


def split(label: str) -> dict[str, dict[int, Memory]]:
    """A job of several GPUs, in fp32: GB on each, and in the host's memory for each."""
    found = {
        way: {
            processes: estimate_memory(method(label), SHAPES, TrainingOptions(deepspeed=name), processes)
            for processes in PROCESS_COUNTS
        }
        for way, name in SPLITS.items()
    }
    rows = [
        [way, *(gb(one.peak) + (f" + {gb(one.host)}" if one.host else "") for one in by_processes.values())]
        for way, by_processes in found.items()
    ]
    table([f"`{label}`", *(f"{count} GPU" + "s" * (count > 1) for count in PROCESS_COUNTS)], rows)
    return found


def operations() -> dict[str, dict[str, float]]:
    """Operations of a step, of all steps and of the images before them for one concept, and hours at several rates."""
    concepts = len(load_concept_set(str(read_base("sd-v1-4").concepts)).all)
    found, rows = {}, []
    for label in METHODS:
        built = method(label)
        if not isinstance(built, GradientMethod):
            continue
        images = built.cost(SHAPES).images
        before = 0.0
        if images:
            each = sum(image_flops(images, SHAPES).values())
            before = each * (images.per_concept + images.per_set_concept * concepts) / 1e12
        step = step_flops(built, SHAPES) / 1e12
        found[label] = {"step_tflop": step, "steps": built.steps, "preparation_tflop": before}
        training = step * built.steps
        numbers = f"{step:.1f}", f"{built.steps:,}", f"{training / 1e3:.1f}", f"{before / 1e3:.1f}"
        rows.append([f"`{label}`", *numbers, *(f"{(before + training) / rate / 3600:.1f}" for rate in RATES)])
    header = ["method", "TFLOP a step", "steps", "PFLOP of training", "PFLOP of preparation"]
    table([*header, *(f"hours at {rate} TFLOP/s" for rate in RATES)], rows)
    return found


def measure() -> None:
    """A step of each gradient method in a fresh process, beside the estimate."""
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here, so there is nothing to be measured")
    device, found = torch.cuda.get_device_name(), {}
    for label in METHODS:
        if isinstance(method(label), GradientMethod):
            command = [sys.executable, "-m", "benchmarks.memory", "--step", label]
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            found[label] = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else {"exit": ran.returncode}
    rows = [[f"`{label}`", gb(one.get("estimate", 0)), gb(one.get("measured", 0))] for label, one in found.items()]
    table(["method", "estimate", "measured"], rows)
    print(write_result(f"memory-{slug(device)}", found, device=device, how="one step in a process of its own"))


def step(label: str) -> dict[str, int]:
    """Bytes at most in one optimiser step, estimated and measured."""
    built, options = method(label), TrainingOptions()
    assert isinstance(built, GradientMethod)
    measured = measured_peak(built, load_base(BASE, "cuda"), SHAPES, options, CudaPeak())
    return {"estimate": estimate_memory(built, SHAPES, options).peak, "measured": measured}


def main() -> None:
    peaks, splits = by_method(), split("esd (u)")
    result = {
        "peaks": {label: {way: asdict(one) for way, one in ways.items()} for label, ways in peaks.items()},
        "esd_u_split": {
            way: {str(count): asdict(one) for count, one in by_processes.items()}
            for way, by_processes in splits.items()
        },
        "operations": operations(),
    }
    print(write_result("memory", result, how="estimated on the meta device; nothing was measured on a GPU"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["--measure"]:
            measure()
        case ["--step", label]:
            print(json.dumps(step(label)))
        case _:
            sys.exit("usage: python -m benchmarks.memory [--measure]")
