"""The estimate of a job's memory: weights of SD v1.4 counted by hand, states by the formulas of the libraries."""

from dataclasses import replace
from typing import Any

import pytest

from efface.models.base import read_base
from efface.models.shapes import ModelShapes, model_shapes
from efface.train.cost.memory import Memory, estimate_memory
from efface.train.method import Method, get_method, parse_config
from efface.train.trainer.options import TrainingOptions

UNET, VAE, TEXT_ENCODER = 859_520_964, 83_653_863, 123_060_480
U = 813_495_680  # what ESD-u trains
X = 43_962_560  # the cross-attention


@pytest.fixture(scope="session")
def sd() -> ModelShapes:
    return model_shapes(read_base("sd-v1-4"))


def method(name: str, **config: Any) -> Method:
    return get_method(name)(parse_config(name, config))


@pytest.fixture(scope="module")
def esd_u() -> Method:
    return method("esd", variant="u")


def deepspeed(name: str) -> TrainingOptions:
    return TrainingOptions(deepspeed=name)


def test_on_one_gpu_there_are_weights_gradients_and_adams_two_moments(sd: ModelShapes, esd_u: Method) -> None:
    found = estimate_memory(esd_u, sd)
    assert found.base == 4 * (UNET + VAE + TEXT_ENCODER)
    assert (found.models, found.states, found.host) == (4 * U, 4 * 3 * U, 0)  # what is frozen is the base's own
    assert found.activations == 4 * U  # the root of the second moments, in Adam's step; more than a pass of one row
    assert found.peak == found.base + found.models + found.states + found.activations


def test_ddp_keeps_the_gradients_a_second_time_in_its_buckets(sd: ModelShapes, esd_u: Method) -> None:
    assert estimate_memory(esd_u, sd, processes=8).peak == estimate_memory(esd_u, sd).peak + 4 * U


def test_zero_shares_the_states_out(sd: ModelShapes, esd_u: Method) -> None:
    """DeepSpeed's documented formula without offload: 2 bytes a weight, and 18 more over the number of GPUs."""
    assert estimate_memory(esd_u, sd, deepspeed("zero2"), 8).states == 2 * U + 18 * U // 8
    alone = estimate_memory(esd_u, sd, deepspeed("zero2"), 1).states
    assert alone == 20 * U == estimate_memory(esd_u, sd, deepspeed("zero1"), 1).states


def test_zero_1_shares_no_gradients(sd: ModelShapes, esd_u: Method) -> None:
    one, two = (estimate_memory(esd_u, sd, deepspeed(name), 8).states for name in ("zero1", "zero2"))
    assert one - two == 4 * U


def test_zero_3_shares_out_what_is_frozen_too(sd: ModelShapes, esd_u: Method) -> None:
    """DeepSpeed partitions every parameter of the network that it is given."""
    one, eight = (estimate_memory(esd_u, sd, deepspeed("zero3"), processes).models for processes in (1, 8))
    assert (one, eight) == (4 * UNET, 4 * U + 4 * (UNET - U) // 8)


def test_offload_moves_the_states_to_the_host(sd: ModelShapes, esd_u: Method) -> None:
    """DeepSpeed's documented formula: 2 bytes a weight stay, 16 a weight and half as much again are the host's."""
    found = estimate_memory(esd_u, sd, deepspeed("zero2-offload"))
    assert (found.states, found.host) == (2 * U, 24 * U)
    everything = estimate_memory(esd_u, sd, deepspeed("zero3-offload"))
    # the largest layer, a convolution of 2560 to 1280 channels, stays
    assert everything.states == 4 * (9 * 2560 * 1280 + 1280) and everything.host == 27 * U


def test_in_bf16_trained_weights_stay_fp32_and_teacher_and_student_share_a_copy(sd: ModelShapes) -> None:
    found = estimate_memory(method("esd", precision="bf16"), sd)
    assert found.models == 4 * X + 2 * UNET and found.states == 12 * X
    assert found.base == 4 * (UNET + VAE + TEXT_ENCODER)


def test_activations_are_those_of_the_batch_and_checkpointing_saves_most_of_them(sd: ModelShapes) -> None:
    one, three = (estimate_memory(method("esd", batch_size=rows), sd) for rows in (1, 3))
    assert three.activations == pytest.approx(3 * one.activations, rel=0.01)
    checkpointed = estimate_memory(method("esd", batch_size=3), sd, TrainingOptions(gradient_checkpointing=True))
    assert checkpointed.activations < three.activations / 2
    assert replace(checkpointed, activations=three.activations) == three


def test_a_closed_form_needs_its_base_and_the_new_values(sd: ModelShapes) -> None:
    """19,169,280 keys and values in fp32; the largest matrix, 1280 x 768, and its product in fp64."""
    found = estimate_memory(method("uce"), sd)
    assert found.peak == 4 * (UNET + VAE + TEXT_ENCODER) + 4 * 19_169_280 + 2 * 8 * 1280 * 768


def test_images_that_are_made_first_count_where_they_are_the_most(sd: ModelShapes) -> None:
    """CA makes images of the anchor, eight at once: at 512 px the VAE's widest tensors have 268 MB an image."""
    found = estimate_memory(method("ca", batch_size=1), sd)
    assert found.preparation > 8 * 2 * 4 * 256 * 512 * 512
    assert found.peak == found.base + found.models + found.preparation


def test_the_image_encoder_of_fade_is_beside_its_images(sd: ModelShapes) -> None:
    """The images of FADE and CA are made eight at once by the same VAE; CLIP ViT-L/14's image half has 304 million."""
    with_encoder, without = (estimate_memory(method(name), sd).preparation for name in ("fade", "ca"))
    assert with_encoder - without == 4 * 304_000_000


def test_peak_is_the_worst_phase() -> None:
    counted = Memory(base=1, models=2, preparation=0, states=8, activations=16, host=10**6)
    assert counted.peak == 1 + 2 + 8 + 16
    assert replace(counted, preparation=1000).peak == 1 + 2 + 1000
