"""An optimiser step with its gradient, alone and packed, and how much of the device it uses.

`python -m benchmarks.train [--device cuda] [--rows 1] [--jobs 1 4 16] [--precision fp32] [--compiled] [--json]`

The forward and backward pass of ESD-x's loss, without roll-out and teacher, at several numbers of packed jobs; TFLOP/s
by counted operations, and their share of what a large matrix product reaches on the device. On a CPU the miniature in
one thread and seconds of the processor; on a GPU Stable Diffusion v1.4 in every shape with random weights, and the
clock. "plain" is the same step as a paper's script takes it, on a copy of the diffusers network, a job after the other;
with --compiled also with its blocks compiled, as `training: {compiled: true}` has them.
"speedup" is of the largest pack over as many jobs alone.
"""

import argparse
import copy
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.on_device import BASES, best_of, matmul_tflops, show, use_line, use_of_device
from efface.models.base import Base, load_base
from efface.models.compiled_blocks import compile_blocks
from efface.models.network import sharing_copy
from efface.models.parameter_groups import select
from efface.models.shapes import cached_unet_pass_cost, model_shapes
from efface.models.text.text_encoding import encode_prompts
from efface.train.trainer.options import TrainingOptions
from efface.train.trainer.packed_base import EditedDenoiser, StackedDenoiser

Precision = Literal["fp32", "bf16"]
GROUP = "xattn"


def step_seconds(base: Base, count: int, rows: int, precision: Precision, rounds: int) -> float:
    """Of one forward and backward pass for so many jobs."""
    edited = []
    for _ in range(count):
        one = EditedDenoiser(base.denoiser.wrapped(sharing_copy(base.unet)), None)  # type: ignore[arg-type]
        trained = select(one.modules, GROUP)
        one.own(trained.values())
        for value in trained.values():
            value.requires_grad_(True)
        edited.append(one)
    stacked = StackedDenoiser(edited[0], TrainingOptions(), precision)
    latents = torch.randn(count * rows, *base.latent_shape, device=base.device)
    timesteps = torch.full((count * rows,), 500, device=base.device)
    conditioning = encode_prompts(base, ["a cat"]).expand(count * rows)

    def step() -> None:
        stacked.predict(edited, latents, timesteps, conditioning).square().mean().backward()

    return best_of({"step": step}, rounds, base.device)["step"]


def plain_seconds(base: Base, rows: int, precision: Precision, rounds: int, compiled: bool = False) -> dict[str, float]:
    """Of one forward and backward pass of a copy of the diffusers network, with autocast for bf16, by "plain".

    With `compiled` also by "compiled": the same with its blocks compiled, in turns.
    """
    networks = {name: copy.deepcopy(base.unet).requires_grad_(False) for name in ("plain", "compiled")[: 1 + compiled]}
    for unet in networks.values():
        for name, value in unet.named_parameters():
            value.requires_grad_("attn2" in name)
    if compiled:
        compile_blocks(networks["compiled"])
    latents = torch.randn(rows, *base.latent_shape, device=base.device)
    hidden = encode_prompts(base, ["a cat"]).encoder_hidden_states.expand(rows, -1, -1)
    timesteps = torch.full((rows,), 500, device=base.device)

    def step(unet: Any) -> None:
        with torch.autocast(base.device.type, torch.bfloat16, enabled=precision == "bf16"):
            predicted = unet(latents, timesteps, encoder_hidden_states=hidden).sample
        predicted.float().square().mean().backward()

    return best_of({name: partial(step, unet) for name, unet in networks.items()}, rounds, base.device)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    base = load_base(BASES[args.device], args.device)
    shapes, (_, height, width) = model_shapes(base.spec), base.latent_shape
    names = tuple(name.removeprefix("unet.") for name in select(shapes.modules, GROUP))
    cost = cached_unet_pass_cost(shapes.unet, names, args.rows, height, width, args.precision)
    tflop = (cost.forward_flops + cost.backward_flops) / 1e12
    ceiling = matmul_tflops(base.device, torch.bfloat16 if args.precision == "bf16" else torch.float32)
    taken = {count: step_seconds(base, count, args.rows, args.precision, args.rounds) for count in (1, *args.jobs)}
    packs = [
        {"jobs": count, "seconds_per_job": seconds / count, **use_of_device(count * tflop, seconds, ceiling)}
        for count, seconds in taken.items()
    ]
    largest = max(taken)
    of_one = plain_seconds(base, args.rows, args.precision, args.rounds, args.compiled)
    plain = of_one["plain"]
    return {
        "speedup": taken[1] * largest / taken[largest],
        "speedup_over_plain": plain * largest / taken[largest],
        "plain_seconds_per_job": plain,
        **({"speedup_compiled": plain / of_one["compiled"]} if args.compiled else {}),
        "packs": packs,
        "matmul_tflops": ceiling,
        "rows": args.rows,
        "precision": args.precision,
        "base": base.spec.name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(BASES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, nargs="+", default=[4, 16], help="jobs in a pack")
    parser.add_argument("--rows", type=int, default=1, help="latents of a job")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compiled", action="store_true", help="also the plain step with its blocks compiled")
    parser.add_argument("--rounds", type=int, default=3, help="each pack is measured so often; the best counts")
    parser.add_argument("--json", action="store_true", help="print one object and nothing else")
    args = parser.parse_args()
    measured = measure(args)
    lines = [
        f"{pack['jobs']:3} jobs: {pack['seconds_per_job'] * 1000:8.1f} ms a job, {use_line(pack)}"
        for pack in measured["packs"]
    ]
    plain = measured["plain_seconds_per_job"] * 1000
    lines.append(
        f"plain loop: {plain:8.1f} ms a job, {measured['speedup_over_plain']:.2f} times what the largest pack takes"
    )
    if args.compiled:
        ratio = measured["speedup_compiled"]
        lines.append(
            f"plain loop, compiled: {plain / ratio:6.1f} ms a job, {ratio:.2f} times the speed of the plain one"
        )
    show("train", args, torch.device(args.device), measured, lines)


if __name__ == "__main__":
    main()
