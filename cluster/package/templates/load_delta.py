"""Puts a delta of efface into a diffusers pipeline. Needs torch, diffusers and safetensors.

python load_delta.py BASE DELTA "a prompt" image.png
"""

import json
import sys

import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file


@torch.no_grad()
def apply_delta(pipe: StableDiffusionPipeline, path: str) -> None:
    with safe_open(path, framework="pt") as file:
        kind = json.loads((file.metadata() or {}).get("efface", "{}")).get("kind")
    if kind == "hook":
        raise ValueError(f"{path}: acts while an image is made and changes no weight; efface makes its images")
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(".down")]:  # an adapter: W + alpha / rank * up @ down
        module, down = name.removesuffix(".down"), tensors[name]
        change = tensors[f"{module}.up"].flatten(1) @ down.flatten(1) * (tensors[f"{module}.alpha"] / down.shape[0])
        weight = find(pipe, f"{module}.weight")
        weight += change.view_as(weight).to(weight)
    for name, value in tensors.items():
        if not name.endswith((".down", ".up", ".alpha")):
            find(pipe, name).copy_(value)


def find(pipe: StableDiffusionPipeline, name: str) -> torch.Tensor:
    component, _, rest = name.partition(".")
    tensors = dict(getattr(pipe, component).named_parameters())
    return tensors[rest] if rest in tensors else tensors[f"text_model.{rest}"]


if __name__ == "__main__":
    base, delta, prompt, out = sys.argv[1:]
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    apply_delta(pipe, delta)
    pipe(prompt).images[0].save(out)
