"""What another delta costs a sampler that stays in memory; `python -m benchmarks.swap [--device cuda] [--json]`.

Deltas of all cross-attention weights are put in place of each other in the base and in its half-precision, compiled
copy; between two of them an image is sampled. Counts compilations after the first image, and checks that the image of a
delta is the same, whatever was in place before. "speedup" is over copying and compiling the network anew.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters

from benchmarks.on_device import arguments, loaded, seconds, show
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.sampling.sampler import ImageRequest, sample

RECIPES = {"cpu": "miniature-fast", "cuda": "fast-sd-compiled"}
SWAPS = 4


def cross_attention_delta(base: Base, seed: int) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: value.cpu() + 0.01 * torch.randn(value.shape, generator=generator)
        for name, value in base.originals().items()
        if name.startswith("unet.") and ".attn2." in name
    }
    return Delta("weights", tensors, {"base_id": base.fingerprint})


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    base, recipe = loaded(args)
    request = [ImageRequest("a photo of a cat", 0)] * 4
    if args.device == "cpu":  # half precision, so that there is a copy
        recipe = recipe.model_copy(update={"dtype": "bfloat16", "batch_size": len(request)})
    deltas = [cross_attention_delta(base, seed) for seed in range(2)]
    begin = time.perf_counter()
    sample(base, recipe, request)
    first = time.perf_counter() - begin
    compiled = counters["stats"]["unique_graphs"]
    swaps, images, sampling = [], [], []
    for number in range(SWAPS):
        swaps.append(seconds(lambda delta=deltas[number % 2]: base.swap(delta), base.device))  # type: ignore[misc]
        begin = time.perf_counter()
        images.append(sample(base, recipe, request))
        sampling.append(time.perf_counter() - begin)
    same = all(np.array_equal(images[number], images[number % 2]) for number in range(SWAPS))
    again = counters["stats"]["unique_graphs"] - compiled
    swap = min(swaps[1:])
    measured = {
        "speedup": (first - min(sampling)) / swap,
        "swap_milliseconds": swap * 1000,
        "compilations_after_the_first_image": again,
        "same_images": same,
        "seconds": {"first image": first, "later images": min(sampling)},
        "recipe": recipe.name,
        "base": base.spec.name,
    }
    lines = [
        f"a delta is put in place of another in {swap * 1000:.1f} ms; the first image took {first:.1f} s, later "
        f"ones {min(sampling):.2f} s",
        f"compilations after the first image: {again}; images of a delta are the same: {same}",
    ]
    return measured, lines


def main() -> None:
    args = arguments(__doc__ or "", RECIPES).parse_args()
    measured, lines = measure(args)
    show("swap", args, torch.device(args.device), measured, lines)


if __name__ == "__main__":
    main()
