"""What the speed benchmarks share: a base without weights to fetch, a clock, and what the device can do at most."""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.record import conditions, write_result
from efface.models.base import Base, load_base
from efface.models.recipe import Recipe, load_recipe
from efface.models.shapes import ModelShapes

BASES = {"cpu": "miniature", "cuda": "sd-v1-4-random"}
"""What is measured on: the miniature, or Stable Diffusion v1.4 in every shape with random weights."""


def arguments(description: str, recipe: dict[str, str]) -> argparse.ArgumentParser:
    """`--device`, `--json` and what every benchmark takes; `recipe` is the default by device."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=sorted(BASES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--recipe", help=f"default: {' or '.join(recipe.values())}")
    parser.add_argument("--rounds", type=int, default=3, help="each thing is measured so often; the best counts")
    parser.add_argument("--json", action="store_true", help="print one object and nothing else")
    parser.set_defaults(default_recipe=recipe)
    return parser


def loaded(args: argparse.Namespace) -> tuple[Base, Recipe]:
    """The base on the device, and the recipe. On a CPU everything runs in one thread."""
    torch.set_num_threads(1)
    return load_base(BASES[args.device], args.device), load_recipe(args.recipe or args.default_recipe[args.device])


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of the processor in this process, or on a GPU of the clock until the GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - begin
    begin = time.process_time()
    work()
    return time.process_time() - begin


def best_of(works: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """The least seconds of each, in turn, so that a busy moment falls on all; after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            taken = seconds(work, device)
            if number or rounds == 0:
                times[name].append(taken)
    return {name: min(found) for name, found in times.items()}


def batch_table(measured: dict[str, Any], other: str) -> list[str]:
    """Lines of seconds an image by batch size, efface's beside those of `other`, as `measured["batches"]` has them."""
    return [
        f"{measured['base']}, recipe {measured['recipe']}: seconds an image",
        f"batch{other:>8}  efface   ratio",
        *(f"{row['batch']:5}{row[other]:8.3f}{row['efface']:8.3f}{row['ratio']:8.2f}" for row in measured["batches"]),
    ]


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """10^12 operations a second in the best of a few large matrix products: what a device reaches at most."""
    best, sizes = 0.0, (4096, 8192) if device.type == "cuda" else (512, 1024)
    for size in sizes:
        one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        repeats = 20 if device.type == "cuda" else 3

        def multiply(one: torch.Tensor = one, other: torch.Tensor = other, repeats: int = repeats) -> None:
            for _ in range(repeats):
                one @ other

        taken = best_of({"product": multiply}, 3, device)["product"]
        best = max(best, 2 * size**3 * repeats / taken / 1e12)
    return best


def use_of_device(tflop: float, seconds: float, ceiling: float) -> dict[str, float]:
    """What so many 10^12 operations in so many seconds use of a device that reaches `ceiling` in a matrix product."""
    return {"tflops": tflop / seconds, "matmul_tflops": ceiling, "share_of_matmul": tflop / seconds / ceiling}


def use_line(measured: dict[str, Any]) -> str:
    """The same for people."""
    return (
        f"{measured['tflops']:.3g} TFLOP/s, {measured['share_of_matmul']:.0%} of the {measured['matmul_tflops']:.3g} "
        "of a large matrix product"
    )


def image_tflop(shapes: ModelShapes, recipe: Recipe, passes: int) -> float:
    """10^12 operations of one image that takes so many passes of the UNet, with its decoding."""
    height, width = recipe.height // shapes.pixels_per_latent, recipe.width // shapes.pixels_per_latent
    step = shapes.unet_pass(1, height, width).forward_flops
    return (passes * step + shapes.decode_pass(1, height, width).forward_flops) / 1e12


def show(name: str, args: argparse.Namespace, device: torch.device, measured: dict[str, Any], lines: list[str]) -> None:
    """Print the result, as one JSON object or as lines for people; both are also kept as a file."""
    on = {"device": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    if args.json:
        print(json.dumps({"benchmark": name, **conditions(), **on, **measured}))
        return
    print("\n".join(lines))
    print(write_result(f"{name}-{device.type}", measured, **on))
