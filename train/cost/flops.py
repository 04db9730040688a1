"""Operations of a job, counted on the meta device from what its method states."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations_with_replacement

from torch import nn

from efface.models.activation_cost import TOKENS, Precision
from efface.models.denoiser import Denoiser
from efface.models.network import Network
from efface.models.noise_scheduler import make_scheduler
from efface.models.parameter_groups import select
from efface.models.recipe import Dtype
from efface.models.shapes import ModelShapes, cached_unet_pass_cost
from efface.models.text_encoder import TextEncoder
from efface.train.method import GradientMethod, Method
from efface.train.method_cost import BaseImages, Cost

Flops = dict[Precision, float]
"""Operations, by what they are computed in."""


def trained_weights(method: Method, shapes: ModelShapes) -> tuple[Network, dict[str, nn.Parameter]]:
    """The student on the meta device, with its adapters, and the tensors that the method changes, by full name."""
    if not isinstance(method, GradientMethod) or not method.saves_what_it_trains:
        # what is saved bounds what is trained, where that is known after `prepare` alone
        return Denoiser(shapes.unet), select(shapes.modules, method.group)
    if method.network == "text_encoder":
        return TextEncoder(shapes.text_encoder), method.trained(TextEncoder(shapes.text_encoder))
    if type(method).add_adapters is GradientMethod.add_adapters:
        return Denoiser(shapes.unet), method.trained(Denoiser(shapes.unet))
    student = Denoiser(copy.deepcopy(shapes.unet))
    method.add_adapters(student, seed=0)
    return student, method.trained(student)


def trained_names(student: Network, trained: dict[str, nn.Parameter]) -> tuple[str, ...]:
    """The names of the trained tensors within the student's network."""
    chosen = {id(parameter) for parameter in trained.values()}
    return tuple(name for name, parameter in student.module.named_parameters() if id(parameter) in chosen)


def conditioning_names(shapes: ModelShapes) -> tuple[str, ...]:
    """Weights of the UNet whose gradient takes what a gradient to the prompts takes: every layer that reads them."""
    return tuple(name for name, _ in shapes.unet.named_parameters() if "attn2.to_k" in name or "attn2.to_v" in name)


def with_replay(method: GradientMethod, cost: Cost) -> Cost:
    """What a batch takes with the prompts that the job replays."""
    if method.config.replay_weight == 0:
        return cost
    rows = method.config.batch_size
    return replace(cost, trained_rows=cost.trained_rows + rows, mean_frozen_rows=cost.mean_frozen_rows + rows)


def step_flops(method: Method, shapes: ModelShapes, checkpointing: bool = False) -> float:
    """Floating-point operations of one optimiser step, on average; 0 for a closed form."""
    if not isinstance(method, GradientMethod):
        return 0.0
    cost, (student, trained) = with_replay(method, method.cost(shapes)), trained_weights(method, shapes)
    names, unet, text = trained_names(student, trained), student.module, 0.0
    if method.network == "text_encoder":
        # two operations a weight and token, and twice that backward
        text = 6.0 * TOKENS * cost.text_rows * sum(parameter.numel() for parameter in unet.parameters())
        names, unet = conditioning_names(shapes), shapes.unet
    sides = cost.latent_sizes or (shapes.latent_size,)
    batches, total = method.config.gradient_accumulation_steps, 0.0
    # an adversary searches once a step, whatever number of batches the step takes
    trained_rows, frozen_rows = batches * cost.trained_rows + cost.mean_search_rows, batches * cost.mean_frozen_rows
    for height, width in combinations_with_replacement(sides, 2):
        one = cached_unet_pass_cost(unet, names, 1, height, width, "fp32", checkpointing)
        step = trained_rows * (one.forward_flops + one.backward_flops) + frozen_rows * one.forward_flops
        total += step * (1 if height == width else 2)  # a latent on its side costs the same
    return float(total / len(sides) ** 2 + batches * text)


def image_flops(images: BaseImages, shapes: ModelShapes) -> Flops:
    """Operations of making one of these images; text and image encoders, some thousandths of it, are not counted."""
    recipe = images.recipe
    height, width = (side // shapes.pixels_per_latent for side in (recipe.height, recipe.width))
    steps = len(make_scheduler(recipe.scheduler, shapes.scheduler_config, recipe.steps).timesteps)
    passes = steps * (2 if recipe.guidance_scale > 1 else 1)
    unet = passes * shapes.unet_pass(1, height, width).forward_flops
    decoder = shapes.decode_pass(1, height, width).forward_flops
    encoder = shapes.encode_pass(1, height, width).forward_flops if images.encoded else 0
    parts: list[Flops] = [{_precision(recipe.dtype): unet}, {_precision(recipe.vae_dtype): decoder}, {"fp32": encoder}]
    return summed((1, part) for part in parts)


def summed(parts: Iterable[tuple[float, Mapping[Precision, float]]]) -> Flops:
    """Each part so many times."""
    flops: Flops = {}
    for times, part in parts:
        for precision, count in part.items():
            flops[precision] = flops.get(precision, 0.0) + times * count
    return {precision: count for precision, count in flops.items() if count}


def _precision(dtype: Dtype) -> Precision:
    """Both halves are as fast as each other."""
    return "fp32" if dtype == "float32" else "bf16"
