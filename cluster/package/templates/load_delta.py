"""Puts a delta of efface into a diffusers pipeline: python load_delta.py BASE DELTA "a prompt" image.png"""

import json
import sys

import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open


@torch.no_grad()
def apply_delta(pipe: StableDiffusionPipeline, path: str) -> None:
    with safe_open(path, framework="pt") as file:
        kind = json.loads((file.metadata() or {}).get("efface", "{}")).get("kind")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if kind == "hook":
        raise ValueError(f"{path}: acts while an image is made and changes no weight; efface makes its images")
    for name in [name for name in tensors if name.endswith(".down")]:  # an adapter: W + alpha / rank * up @ down
        module, down = name.removesuffix(".down"), tensors.pop(name)
        up, alpha = tensors.pop(f"{module}.up"), tensors.pop(f"{module}.alpha")
        weight = find(pipe, f"{module}.weight")
        weight += (up.flatten(1) @ down.flatten(1) * (alpha / len(down))).view_as(weight).to(weight)
    for name, value in tensors.items():
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
