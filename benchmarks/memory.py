"""What each method needs of a GPU at the size of Stable Diffusion v1.4, by computation; `python -m benchmarks.memory`.

Nothing is measured on a GPU: shapes are run through the methods' passes on the meta device
(`efface.train.cost.memory`).
Prints the tables of docs/hardware.md and writes benchmarks/results/memory.json. Some minutes on one core.

`python -m benchmarks.memory --measure` holds the peaks against a GPU: two steps of each method at full size with random
weights, each in a process of its own, so that a peak is its own. Writes benchmarks/results/memory-DEVICE.json.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.record import write_result
from efface.concepts.concept import load_concept_set
from efface.files import slug
from efface.models.base import architecture, load_base, read_base
from efface.models.recipe import load_recipe
from efface.train.cost.memory import Memory, fits, memory, memory_options
from efface.train.cost.passes import model_shapes, preparation_flops, step_flops
from efface.train.job import make_job
from efface.train.method import Method, get_method, parse_config
from efface.train.run_job import run_job
from efface.train.trainer.options import TrainingOptions

CARDS = (16, 24, 40, 80, 141)
BATCHES = (32, 16, 8, 4, 2, 1)
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
WAYS = {
    "fp32": ("fp32", False),
    "fp32, checkpointing": ("fp32", True),
    "bf16": ("bf16", False),
    "bf16, checkpointing": ("bf16", True),
}
SPLITS: dict[str, dict[str, Any]] = {
    "DDP": {},
    "ZeRO-1": {"zero": 1},
    "ZeRO-2": {"zero": 2},
    "ZeRO-2, offload": {"zero": 2, "offload": "optimizer"},
    "ZeRO-3": {"zero": 3},
    "ZeRO-3, offload": {"zero": 3, "offload": "all"},
}
BASE = read_base("sd-v1-4")
SIZE = model_shapes(BASE)
# CA shows 16 samples, so takes two steps too; neighbours that are listed need no images.
SHORT = {
    "esd": {"steps": 2},
    "ca": {"samples_seen": 16, "anchor_images": 8},
    "fade": {"steps": 2, "neighbours": ("a dog", "a fox", "a wolf", "a lion", "a bear")},
}
MEASURED: dict[str, tuple[str, dict[str, Any], TrainingOptions]] = {
    **{
        label: (name, {**config, **SHORT[name]}, TrainingOptions())
        for label, (name, config) in METHODS.items()
        if name != "uce"
    },
    "esd (u), zero2-offload": ("esd", {"variant": "u", **SHORT["esd"]}, TrainingOptions(deepspeed="zero2-offload")),
}
"""Methods as their papers have them, but for what comes before the first step and how many there are."""


def method(label: str, precision: str = "fp32", batch: int | None = None) -> Method:
    """A method as its paper has it, but for these."""
    name, config = METHODS[label]
    if name != "uce":
        config = {**config, "precision": precision, **({"batch_size": batch} if batch else {})}
    return get_method(name)(parse_config(name, config))


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def by_method() -> dict[str, dict[str, Memory]]:
    """Peaks on one GPU with the batch of the paper."""
    found = {
        label: {way: memory(method(label, precision), SIZE, checkpointing=on) for way, (precision, on) in WAYS.items()}
        for label in METHODS
    }
    batches = {label: str(getattr(method(label).config, "batch_size", "-")) for label in METHODS}
    rows = [[f"`{label}`", batches[label], *(gb(one.peak) for one in ways.values())] for label, ways in found.items()]
    table(["method", "batch", *WAYS], rows)
    return found


def parts(found: dict[str, dict[str, Memory]]) -> None:
    """Of what the peaks in fp32 consist."""
    names = ("base", "student", "gradients", "optimizer", "preparation", "rollout", "training", "update")
    rows = [[f"`{label}`", *(gb(getattr(ways["fp32"], name)) for name in names)] for label, ways in found.items()]
    table(["method", *names], rows)


def largest_batches() -> dict[str, dict[str, list[int]]]:
    """The largest batch, of powers of two, that fits each card; 0: none."""
    found: dict[str, dict[str, list[int]]] = {}
    for label in METHODS:
        if label == "uce":
            continue
        for way in ("fp32", "bf16, checkpointing"):
            precision, on = WAYS[way]
            largest = dict.fromkeys(CARDS, 0)
            for batch in reversed(BATCHES):
                needed = memory(method(label, precision, batch), SIZE, checkpointing=on)
                fitting = [card for card in CARDS if fits(needed, card)]
                largest.update(dict.fromkeys(fitting, batch))
                if not fitting:
                    break
            found.setdefault(label, {})[way] = list(largest.values())
    rows = [
        [f"`{label}`", way, *(f"{batch}" if batch else "-" for batch in batches)]
        for label, ways in found.items()
        for way, batches in ways.items()
    ]
    table(["method", "", *(f"{card} GB" for card in CARDS)], rows)
    return found


def split(label: str) -> dict[str, dict[int, Memory]]:
    """A job of several GPUs, in fp32: GB on each, and in the host's memory for each."""
    share = partial(memory, method(label), SIZE)
    found = {
        way: {processes: share(processes=processes, **options) for processes in PROCESS_COUNTS}
        for way, options in SPLITS.items()
    }
    rows = []
    for way, by_processes in found.items():
        peaks = [gb(one.peak) + (f" + {gb(one.host)}" if one.host else "") for one in by_processes.values()]
        card = next(f"{card} GB" for card in CARDS if fits(by_processes[1], card))
        rows.append([way, *peaks, card])
    table(
        [f"`{label}`", *(f"{processes} GPU" + "s" * (processes > 1) for processes in PROCESS_COUNTS), "card for one"],
        rows,
    )
    return found


def operations() -> dict[str, dict[str, float]]:
    """Operations of a step, of all steps and of what comes before them, and the hours of it all at several rates."""
    scheduler = json.loads((architecture("sd-v1-4") / "scheduler" / "scheduler_config.json").read_text())
    others = len(load_concept_set(str(BASE.concepts)).all) - 1
    found, rows = {}, []
    for label in METHODS:
        built: Any = method(label)
        if label == "uce":
            continue
        step = step_flops(built, SIZE) / 1e12
        before = preparation_flops(built, SIZE, load_recipe(BASE.recipe), scheduler, others) / 1e12
        found[label] = {"step_tflop": step, "steps": built.steps, "preparation_tflop": before}
        training = step * built.steps
        hours = [f"{(before + training) / rate / 3600:.1f}" for rate in RATES]
        numbers = f"{step:.1f}", f"{built.steps:,}", f"{training / 1e3:.1f}", f"{before / 1e3:.1f}"
        rows.append([f"`{label}`", *numbers, *hours])
    header = ["method", "TFLOP a step", "steps", "PFLOP of training", "PFLOP of preparation"]
    table([*header, *(f"hours at {rate} TFLOP/s" for rate in RATES)], rows)
    return found


def measure() -> None:
    """Each job of MEASURED in a fresh process, its peaks beside the computed one."""
    if not torch.cuda.is_available():
        print("there is no GPU here, so there is nothing to be measured", file=sys.stderr)
        sys.exit(2)
    device, found = torch.cuda.get_device_name(), {}
    for label in MEASURED:
        ran = subprocess.run([sys.executable, __file__, "--job", label], stdout=subprocess.PIPE, text=True)
        lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]  # DeepSpeed may have its say too
        found[label] = json.loads(lines[-1]) if ran.returncode == 0 else {"exit": ran.returncode}
    table(
        ["method", "computed", "allocated", "of computed", "reserved", "seconds of a step"],
        [[f"`{label}`", *table_row(one)] for label, one in found.items()],
    )
    print(write_result(f"memory-{slug(device)}", found, device=device, how="one job in a process of its own"))


def table_row(one: dict[str, Any]) -> list[str]:
    """A row of the table; "-" where the job failed."""
    if "exit" in one:
        return ["-"] * 5
    peaks = [gb(one[name]) for name in ("computed", "allocated", "reserved")]
    return [*peaks[:2], f"{one['allocated'] / one['computed']:.2f}", peaks[2], f"{one['step_seconds']:.2f}"]


def job(label: str, base_name: str = "sd-v1-4-random", device: str = "cuda") -> dict[str, float]:
    """Two steps of one of MEASURED: bytes at most, and the seconds of the second step."""
    name, config, training_options = MEASURED[label]
    spec = read_base(base_name)
    base, concepts = load_base(spec, device), load_concept_set(str(BASE.concepts))
    built = get_method(name)(parse_config(name, config))
    ends: list[float] = []

    def on_step(done: int, steps: int, loss: float) -> None:
        torch.cuda.synchronize()
        ends.append(time.perf_counter())

    job_spec = make_job(base.spec.name, base.fingerprint, name, concepts, ["Van Gogh"], config=config)
    torch.cuda.reset_peak_memory_stats()
    run_job(job_spec, base, concepts, on_step, training_options=training_options)
    return {
        "computed": memory(built, model_shapes(spec), **memory_options(training_options)).peak,
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "step_seconds": ends[1] - ends[0],
    }


def main() -> None:
    peaks = by_method()
    parts(peaks)
    batches = largest_batches()
    splits = split("esd (u)")
    operation_counts = operations()
    measured = {
        "peaks": {label: {way: asdict(one) for way, one in ways.items()} for label, ways in peaks.items()},
        "cards": list(CARDS),
        "largest_batches": batches,
        "esd_u_split": {
            way: {str(n): asdict(one) for n, one in by_processes.items()} for way, by_processes in splits.items()
        },
        "operations": operation_counts,
    }
    print(write_result("memory", measured, how="computed on the meta device; nothing was measured on a GPU"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["--measure"]:
            measure()
        case ["--job", label]:
            print(json.dumps(job(label)))
        case _:
            sys.exit("usage: python -m benchmarks.memory [--measure]")
