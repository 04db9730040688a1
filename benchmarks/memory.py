"""What each method needs of a GPU at the size of Stable Diffusion v1.4, by computation; `python benchmarks/memory.py`.

Nothing is measured on a GPU: shapes are run through the methods' passes on the meta device (`efface.train.memory`).
Prints the tables of docs/hardware.md and writes benchmarks/results/memory.json. Some minutes on one core.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from record import write_result

from efface.models.base import read_base
from efface.train.memory import Memory, fits, memory
from efface.train.method import Method, get_method, parse_config
from efface.train.passes import size_of, step_flops

CARDS = (16, 24, 40, 80, 141)
BATCHES = (32, 16, 8, 4, 2, 1)
GANGS = (1, 2, 4, 8)
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
SIZE = size_of(read_base("sd-v1-4"))


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
    found = {way: {gang: share(processes=gang, **options) for gang in GANGS} for way, options in SPLITS.items()}
    rows = []
    for way, gangs in found.items():
        peaks = [gb(one.peak) + (f" + {gb(one.host)}" if one.host else "") for one in gangs.values()]
        card = next(f"{card} GB" for card in CARDS if fits(gangs[1], card))
        rows.append([way, *peaks, card])
    table([f"`{label}`", *(f"{gang} GPU" + "s" * (gang > 1) for gang in GANGS), "card for one"], rows)
    return found


def work() -> dict[str, dict[str, float]]:
    """Operations of a step and of all steps."""
    found = {}
    for label in METHODS:
        built: Any = method(label)
        if label != "uce":
            found[label] = {"step_tflop": step_flops(built, SIZE) / 1e12, "steps": built.steps}
    rows = [
        [f"`{label}`", f"{one['step_tflop']:.1f}", f"{one['steps']:,}", f"{one['step_tflop'] * one['steps'] / 1e3:.0f}"]
        for label, one in found.items()
    ]
    table(["method", "TFLOP a step", "steps", "PFLOP in all"], rows)
    return found


def main() -> None:
    peaks = by_method()
    parts(peaks)
    batches = largest_batches()
    splits = split("esd (u)")
    operations = work()
    measured = {
        "peaks": {label: {way: asdict(one) for way, one in ways.items()} for label, ways in peaks.items()},
        "cards": list(CARDS),
        "largest_batches": batches,
        "esd_u_split": {way: {str(n): asdict(one) for n, one in gangs.items()} for way, gangs in splits.items()},
        "work": operations,
    }
    print(write_result("memory", measured, how="computed on the meta device; nothing was measured on a GPU"))


if __name__ == "__main__":
    main()
