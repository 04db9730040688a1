"""How fast models are judged, beside a plain loop; `python -m benchmarks.evaluate [--device cuda] [--json]`.

Sampling, judging and PNGs of the same images in the same run, at each batch size in turn. The plain loop is what a
script does: diffusers' pipeline in batches, then the judge, then each PNG. On a CPU the miniature with its judge in one
thread, and seconds of the processor; on a GPU Stable Diffusion v1.4 with random weights, judged by a CLIP ViT-L/14 with
random weights, and the clock. TFLOP/s count the images, not the judge. "speedup" is at each one's best batch,
"least_ratio" that of the worst batch.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.generate import IMAGES_PER_PROMPT, LEAST_IMAGES, PROMPTS, pipeline_batch, stock_pipeline
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
from efface.concepts.concept import Concept, ConceptSet, load_concept_set
from efface.eval.judge import Judge, Verdict
from efface.eval.judging.eval_requests import Ask, EvalRequest
from efface.eval.judging.evaluate import evaluate, png
from efface.eval.judging.judge_spec import load_judge
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import SamplingCost, sample
from efface.models.shapes import model_shapes

RECIPES = {"cpu": "miniature", "cuda": "reference-fp16"}
BATCHES = {"cpu": (1, 4, 16, 32), "cuda": (16, 32)}


class RandomClip:
    """What judging by CLIP ViT-L/14 costs: its vision tower with random weights, in half precision."""

    name, version = "random-clip", "0" * 16

    def __init__(self, device: torch.device) -> None:
        config = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
        )
        self.tower = CLIPVisionModel(config).eval().to(device, torch.float16)

    def check(self, concepts: Iterable[Concept]) -> None:
        pass

    @torch.no_grad()
    def judge(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[Verdict]:
        pixels = torch.from_numpy(images).to(self.tower.device).permute(0, 3, 1, 2).half() / 255
        features = self.tower(F.interpolate(pixels, (224, 224), mode="bilinear")).pooler_output.float().mean(dim=-1)
        return [Verdict(value > 0, 1 / (1 + np.exp(-value))) for value in features.tolist()]


def plain_loop(
    base: Base, recipe: Recipe, batch: int, requests: list[EvalRequest], judge: Judge, concepts: ConceptSet
) -> list[tuple[Verdict, bytes]]:
    """Every image, its verdict and its PNG, one batch after another."""
    pipe, found = stock_pipeline(base, recipe), []
    for start in range(0, len(requests), batch):
        part = requests[start : start + batch]
        made = pipeline_batch(pipe, recipe, part)
        images = (made * 255).round().astype(np.uint8)
        verdicts = judge.judge(images, [concepts.find(request.asks[0].asked_concept) for request in part])
        found += [(verdict, png(image)) for verdict, image in zip(verdicts, images, strict=True)]
    return found


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    base, recipe = loaded(args)
    concepts = load_concept_set("miniature")
    judge: Judge = RandomClip(base.device) if args.device == "cuda" else load_judge("miniature")
    ask = (Ask("cat", "forget", "cat", "p"),)
    requests = [EvalRequest(prompt, seed, ask) for prompt in PROMPTS for seed in range(IMAGES_PER_PROMPT)]
    cost = SamplingCost()
    sample(base, recipe.model_copy(update={"batch_size": 1}), requests[:1], cost=cost)
    tflop = image_tflop(model_shapes(base.spec), recipe, cost.unet_rows)
    ceiling = matmul_tflops(base.device, getattr(torch, recipe.dtype))
    rows = []
    for batch in args.batches or BATCHES[args.device]:
        count = math.ceil(max(batch, LEAST_IMAGES) / batch) * batch
        repeated = (requests * math.ceil(count / len(requests)))[:count]
        same = recipe.model_copy(update={"batch_size": batch})
        works: dict[str, Callable[[], Any]] = {
            "plain": partial(plain_loop, base, recipe, batch, repeated, judge, concepts),
            "efface": partial(evaluate, base, same, repeated, [judge], concepts, model_id="m", method="base"),
        }
        taken = {name: value / count for name, value in best_of(works, args.rounds, base.device).items()}
        rows.append({"batch": batch, **taken, "ratio": taken["plain"] / taken["efface"]})
    plain, ours = (min(row[name] for row in rows) for name in ("plain", "efface"))
    measured = {
        "speedup": plain / ours,
        "least_ratio": min(row["ratio"] for row in rows),
        "seconds_per_image": {"plain": plain, "efface": ours},
        **use_of_device(tflop, ours, ceiling),
        "recipe": recipe.name,
        "base": base.spec.name,
        "batches": rows,
    }
    return measured, report(measured)


def report(measured: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = batch_table(measured, "plain")
    return [
        *lines,
        f"best batch of each: {measured['speedup']:.2f} times as fast as the plain loop",
        f"{use_line(measured)}, by the images' operations alone",
    ]


def main() -> None:
    parser = arguments(__doc__ or "", RECIPES)
    parser.add_argument("--batches", type=int, nargs="+", help="images in a batch")
    args = parser.parse_args()
    measured, lines = measure(args)
    show("evaluate", args, torch.device(args.device), measured, lines)


if __name__ == "__main__":
    main()
