"""The rows each method's passes are said to have, against the method at work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from efface.errors import UserError
from efface.models.base import Base, BaseSpec, architecture, read_base
from efface.models.loading import empty_components
from efface.models.recipe import load_recipe
from efface.train.cost.passes import (
    ForwardPasses,
    ModelShapes,
    forward_passes,
    model_shapes,
    preparation_flops,
    step_flops,
    trained_tensors,
)
from efface.train.method import Method, get_method, method_names, parse_config

BATCHES = 12  # enough for a roll-out of the full length and of none


@pytest.fixture
def tiny_size(tiny_base_folder: Path) -> ModelShapes:
    return ModelShapes(*empty_components(tiny_base_folder), image_size=16)


@pytest.fixture(scope="session")
def sd() -> ModelShapes:
    return model_shapes(read_base("sd-v1-4"))


def method(name: str, **config: Any) -> Method:
    return get_method(name)(parse_config(name, config))


def recorded(base: Base, built: Any, student: Any) -> tuple[list[int], list[list[int]], set[int]]:
    """Rows of the passes with gradient, rows of all others batch by batch, and the latents' sides."""
    trained: list[int] = []
    frozen: list[list[int]] = []
    latent_sizes: set[int] = set()

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows, _, height, width = inputs[0].shape
        latent_sizes.update((height, width))
        trained.append(rows) if torch.is_grad_enabled() else frozen[-1].append(rows)

    for unet in (base.unet, student.unet):
        unet.register_forward_pre_hook(note)
    for index in range(BATCHES):
        frozen.append([])
        with torch.no_grad():
            batch = built.batch(index)
        built.loss(student, batch)
    return trained, frozen, latent_sizes


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("esd", {}),
        ("esd", {"batch_size": 3, "erase_from": "an animal"}),
        ("esd", {"guidance_scale": 1, "on_policy": False}),
        ("ca", {}),
        ("ca", {"prior_weight": 0, "objective": "noise"}),
        ("fade", {"neighbours": ("a dog", "a fox")}),
        ("fade", {"neighbours": ("a dog",), "batch_size": 2, "sizes": (8, 16), "denoising_guidance": 1}),
    ],
)
def test_the_rows_are_those_of_the_method_at_work(
    name: str, config: dict[str, Any], prepare: Callable[..., Any], tiny_base: Base, tiny_size: ModelShapes
) -> None:
    built, student = prepare(name, **config)
    result = forward_passes(built, tiny_size)
    assert isinstance(result, ForwardPasses)
    trained, frozen, latent_sizes = recorded(tiny_base, built, student)
    assert set(trained) == {result.trained} and len(trained) == BATCHES
    assert max((rows for batch in frozen for rows in batch), default=0) == result.frozen
    assert latent_sizes == set(result.latent_sizes)
    # Roll-outs are of random length: the mean lies between the shortest and the longest.
    sums = [sum(batch) for batch in frozen]
    assert min(sums) <= result.mean_frozen_rows <= max(sums)


def test_a_closed_form_takes_no_pass(sd: ModelShapes) -> None:
    assert forward_passes(method("uce"), sd) is None and step_flops(method("uce"), sd) == 0


def test_every_built_in_method_is_told_of(sd: ModelShapes) -> None:
    for name in method_names():
        if get_method(name).__module__.startswith("efface."):
            forward_passes(method(name), sd)


def test_another_method_is_not_guessed_at(sd: ModelShapes) -> None:
    built = method("esd")
    built.name = "mine"  # type: ignore[misc]
    with pytest.raises(UserError, match="the passes of method 'mine' are not known, only of ca, esd, fade, uce"):
        forward_passes(built, sd)


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        # Published: 859.52 million in all, 815.56 without the cross-attention. The method's `u` leaves out the time
        # embedding (320 -> 1280 -> 1280) and the output (a norm of 320, 3 x 3 from 320 to 4) too.
        ("esd", {"variant": "full"}, 859_520_964),
        ("esd", {"variant": "x"}, 859_520_964 - 815_558_404),
        ("esd", {"variant": "u"}, 815_558_404 - 321 * 1280 - 1281 * 1280 - 2 * 320 - (320 * 9 + 1) * 4),
        ("ca", {}, 19_169_280),
        # Rank 1: d_in + d_out of 16 blocks' ten linear layers and two 1 x 1 convolutions. With c channels, 12,480 in
        # all: 2 (2 c) of proj_in and proj_out, 6 (2 c) of attn1 and of attn2's to_q and to_out, 2 (768 + c) of its
        # to_k and to_v, and of the feed-forward c + 8 c and 4 c + c.
        ("fade", {}, (4 + 12 + 2 + 9 + 5) * 12_480 + 16 * 2 * 768),
    ],
)
def test_trained_numbers(name: str, config: dict[str, Any], count: int, sd: ModelShapes) -> None:
    unet, trained = trained_tensors(method(name, **config), sd)
    assert sum(parameter.numel() for parameter in trained.values()) == count
    assert set(trained) <= {name for name, _ in unet.named_parameters()}


def test_a_step_of_esd_is_some_53_forward_passes(sd: ModelShapes) -> None:
    """24.5 roll-out steps of two rows, the teacher's two, and 2.1 of the student's forward and backward."""
    assert step_flops(method("esd"), sd) / 803.27e9 == pytest.approx(24.5 * 2 + 2 + 2.14, abs=0.05)


FORWARD, DECODE, ENCODE = 0.80327, 2.5145, 1.1167
"""TFLOP at 512 px: the UNet's, and those of the VAE's two halves."""


def test_a_step_of_ca_is_sixteen_passes_forward_and_back_and_eight_of_the_teacher(sd: ModelShapes) -> None:
    """Back costs 1.14 of a pass forward: the gradient of activations, as nearly all weights are frozen."""
    assert step_flops(method("ca"), sd) / 1e12 == pytest.approx(FORWARD * (16 * (1 + 1.143) + 8), rel=0.001)


def test_a_step_of_fade_is_some_1167_forward_passes_of_smaller_latents(sd: ModelShapes) -> None:
    """Four noises under nine prompts: fifteen guided steps and the teacher's one; six of the prompts are trained."""
    built = method("fade", sizes=(512,))
    rows = 4 * 9 * (2 * 15 + 1) + 4 * 6 * (1 + 1.25)
    assert step_flops(built, sd) / 1e12 == pytest.approx(FORWARD * rows, rel=0.001)
    assert 256 / 512 < (step_flops(method("fade"), sd) / step_flops(built, sd)) ** 0.5 < 448 / 512


def test_what_the_base_draws_beforehand(sd: ModelShapes) -> None:
    """CA: 1,000 images of 25 guided steps, decoded and encoded. FADE: eight images of each of 83 concepts, 51 steps."""
    scheduler = json.loads((architecture("sd-v1-4") / "scheduler" / "scheduler_config.json").read_text())

    def drawn(name: str, candidates: int = 82, **config: Any) -> float:
        return preparation_flops(method(name, **config), sd, load_recipe("reference"), scheduler, candidates) / 1e12

    assert drawn("ca") == pytest.approx(1000 * (25 * 2 * FORWARD + DECODE + ENCODE), rel=0.001)
    assert drawn("ca", image_guidance_scale=1) == pytest.approx(1000 * (25 * FORWARD + DECODE + ENCODE), rel=0.001)
    assert drawn("fade") == pytest.approx(8 * 83 * (51 * 2 * FORWARD + DECODE), rel=0.001)
    assert drawn("fade", neighbours="adjacent") == drawn("esd") == drawn("uce") == 0


def test_sizes_come_from_the_configs_alone() -> None:
    size = model_shapes(BaseSpec(name="x", source="some/where-on-the-hub", architecture="sd-v1-4"))
    assert (size.image_size, size.latent_size, size.pixels_per_latent) == (512, 64, 8)
    assert model_shapes(read_base("sd-v1-4-random")).unet.device.type == "meta"
