"""How fast images are made, beside diffusers' own pipeline; `python -m benchmarks.generate [--device cuda] [--json]`.

Both make the same images in the same run, at each batch size in turn: the pipeline in the recipe's dtype, as its users
call it, and efface's sampler. On a CPU the miniature in one thread and seconds of the processor; on a GPU Stable
Diffusion v1.4 in every shape with random weights, and the clock. "speedup" is at each one's best batch.
"""

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.on_device import (
    arguments,
    batch_table,
    best_of,
    image_tflop,
    loaded,
    matmul_tflops,
    show,
    use_line,
    use_of_device,
)
from efface.eval.judging.eval_requests import EvalRequest
from efface.models.base import Base
from efface.models.noise_scheduler import make_scheduler
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, SamplingCost, sample
from efface.models.shapes import model_shapes

RECIPES = {"cpu": "miniature", "cuda": "reference-fp16"}
BATCHES = {"cpu": (1, 2, 4, 8, 16, 32), "cuda": (1, 4, 16, 32, 64)}
PROMPTS = ("a photo of a cat", "a bus in the rain", "a red apple", "a tree at night", "a fox", "a boat", "a house", "")
IMAGES_PER_PROMPT = 4
LEAST_IMAGES = 4


def stock_pipeline(base: Base, recipe: Recipe) -> StableDiffusionPipeline:
    """diffusers' pipeline of the same modules, in the recipe's dtype."""
    dtype = getattr(torch, recipe.dtype)
    parts = [base.vae, base.text_encoder, base.unet]
    vae, text_encoder, unet = parts if dtype == torch.float32 else [copy.deepcopy(part).to(dtype) for part in parts]
    scheduler = make_scheduler(recipe.scheduler, base.scheduler_config, recipe.steps)
    pipe = StableDiffusionPipeline(
        vae, text_encoder, base.tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_batch(
    pipe: StableDiffusionPipeline, recipe: Recipe, requests: Sequence[ImageRequest | EvalRequest]
) -> np.ndarray:
    """Their images in one batch: float (N, H, W, 3) in [0, 1]."""
    images: np.ndarray = pipe(
        [request.prompt for request in requests],
        height=recipe.height,
        width=recipe.width,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance_scale,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        output_type="np",
    ).images
    return images


def by_pipeline(pipe: StableDiffusionPipeline, recipe: Recipe, batch: int, requests: list[ImageRequest]) -> None:
    for start in range(0, len(requests), batch):
        pipeline_batch(pipe, recipe, requests[start : start + batch])


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    base, recipe = loaded(args)
    pipe = stock_pipeline(base, recipe)
    requests = [ImageRequest(prompt, seed) for prompt in PROMPTS for seed in range(IMAGES_PER_PROMPT)]
    cost = SamplingCost()
    sample(base, recipe.model_copy(update={"batch_size": 1}), requests[:1], cost=cost)
    tflop, ceiling = (
        image_tflop(model_shapes(base.spec), recipe, cost.unet_rows),
        matmul_tflops(base.device, getattr(torch, recipe.dtype)),
    )
    rows = []
    for batch in args.batches or BATCHES[args.device]:
        count = math.ceil(max(batch, LEAST_IMAGES) / batch) * batch
        repeated = (requests * math.ceil(count / len(requests)))[:count]
        same = recipe.model_copy(update={"batch_size": batch})
        works: dict[str, Callable[[], Any]] = {
            "stock": partial(by_pipeline, pipe, recipe, batch, repeated),
            "efface": partial(sample, base, same, repeated),
        }
        taken = {name: value / count for name, value in best_of(works, args.rounds, base.device).items()}
        rows.append({"batch": batch, **taken, "ratio": taken["stock"] / taken["efface"]})
    stock, ours = (min(row[name] for row in rows) for name in ("stock", "efface"))
    alone = next((row["stock"] for row in rows if row["batch"] == 1), None)
    measured = {
        "speedup": stock / ours,
        "speedup_over_batch_1": alone / ours if alone else None,
        "seconds_per_image": {"stock": stock, "efface": ours},
        **use_of_device(tflop, ours, ceiling),
        "recipe": recipe.name,
        "base": base.spec.name,
        "batches": rows,
    }
    return measured, report(measured)


def report(measured: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = batch_table(measured, "stock")
    over = measured["speedup_over_batch_1"]
    return [
        *lines,
        f"best batch of each: {measured['speedup']:.2f} times as fast as diffusers' pipeline"
        + (f", {over:.2f} times as fast as it is at batch 1" if over else ""),
        use_line(measured),
    ]


def main() -> None:
    parser = arguments(__doc__ or "", RECIPES)
    parser.add_argument("--batches", type=int, nargs="+", help="images in a batch")
    args = parser.parse_args()
    measured, lines = measure(args)
    show("generate", args, torch.device(args.device), measured, lines)


if __name__ == "__main__":
    main()
