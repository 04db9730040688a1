"""Operations of the methods at the size of Stable Diffusion v1.4, against published and hand-counted numbers."""

from typing import Any

import pytest

from efface.models.base import read_base
from efface.models.shapes import ModelShapes, model_shapes
from efface.train.cost.flops import image_flops, step_flops, trained_names, trained_weights
from efface.train.method import Method, get_method, parse_config


@pytest.fixture(scope="session")
def sd() -> ModelShapes:
    return model_shapes(read_base("sd-v1-4"))


def method(name: str, **config: Any) -> Method:
    return get_method(name)(parse_config(name, config))


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
    student, trained = trained_weights(method(name, **config), sd)
    assert sum(parameter.numel() for parameter in trained.values()) == count
    assert len(trained_names(student, trained)) == len(trained)


def test_a_step_of_esd_is_some_53_forward_passes(sd: ModelShapes) -> None:
    """24.5 roll-out steps of two rows, the teacher's two, and 2.1 of the student's forward and backward."""
    assert step_flops(method("esd"), sd) / 803.27e9 == pytest.approx(24.5 * 2 + 2 + 2.14, abs=0.05)


FORWARD, DECODE, ENCODE = 0.80327, 2.5145, 1.1167
"""TFLOP at 512 px: the UNet's, and those of the VAE's two halves."""


def test_a_step_of_ca_is_sixteen_passes_forward_and_back_and_eight_of_the_teacher(sd: ModelShapes) -> None:
    """Back costs 1.14 of a pass forward: the gradient of activations, as nearly all weights are frozen."""
    assert step_flops(method("ca"), sd) / 1e12 == pytest.approx(FORWARD * (16 * (1 + 1.143) + 8), rel=0.001)


@pytest.mark.slow
def test_a_step_of_fade_is_some_1167_forward_passes_of_smaller_latents(sd: ModelShapes) -> None:
    """Four noises under nine prompts: fifteen guided steps and the teacher's one; six of the prompts are trained."""
    built = method("fade", sizes=(512,))
    rows = 4 * 9 * (2 * 15 + 1) + 4 * 6 * (1 + 1.25)
    assert step_flops(built, sd) / 1e12 == pytest.approx(FORWARD * rows, rel=0.001)
    assert 256 / 512 < (step_flops(method("fade"), sd) / step_flops(built, sd)) ** 0.5 < 448 / 512


def test_a_closed_form_takes_no_pass(sd: ModelShapes) -> None:
    assert step_flops(method("uce"), sd) == 0


def test_a_latent_on_its_side_costs_the_same(sd: ModelShapes) -> None:
    """Why only one of (height, width) and (width, height) is counted."""
    assert sd.unet_pass(1, 32, 56).forward_flops == sd.unet_pass(1, 56, 32).forward_flops


def images(name: str, sd: ModelShapes, **config: Any) -> Any:
    return method(name, **config).cost(sd).images  # type: ignore[attr-defined]


def test_ca_makes_and_encodes_1000_images_of_25_guided_steps_for_each_concept(sd: ModelShapes) -> None:
    made = images("ca", sd)
    assert (made.per_concept, made.per_set_concept) == (1000, 0)
    assert image_flops(made, sd) == {"fp32": pytest.approx(1e12 * (25 * 2 * FORWARD + DECODE + ENCODE), rel=0.001)}
    unguided = image_flops(images("ca", sd, image_guidance_scale=1), sd)
    assert unguided == {"fp32": pytest.approx(1e12 * (25 * FORWARD + DECODE + ENCODE), rel=0.001)}


def test_images_in_half_precision_are_encoded_in_full(sd: ModelShapes) -> None:
    """Whatever precision the training has, which is none of theirs."""
    full, half = images("ca", sd, precision="bf16"), images("ca", sd, image_dtype="bfloat16")
    assert image_flops(full, sd).keys() == {"fp32"}
    assert image_flops(half, sd) == {
        "bf16": pytest.approx(1e12 * (25 * 2 * FORWARD + DECODE), rel=0.001),
        "fp32": pytest.approx(1e12 * ENCODE, rel=0.001),
    }


def test_fade_makes_eight_images_of_51_steps_of_each_concept_of_the_set(sd: ModelShapes) -> None:
    made = images("fade", sd)
    assert (made.per_concept, made.per_set_concept) == (0, 8)
    assert image_flops(made, sd) == {"fp32": pytest.approx(1e12 * (51 * 2 * FORWARD + DECODE), rel=0.001)}
    listed = images("fade", sd, candidates=("a dog", "a fox"))
    assert (listed.per_concept, listed.per_set_concept) == (3 * 8, 0)


def test_esd_and_fade_with_given_neighbours_make_none(sd: ModelShapes) -> None:
    assert images("esd", sd) is images("fade", sd, neighbours="adjacent") is None
