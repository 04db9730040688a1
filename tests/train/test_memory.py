"""What a job needs of a GPU, held against sums done by hand for Stable Diffusion v1.4."""

from dataclasses import replace
from typing import Any

import pytest

from efface.models.base import read_base
from efface.strict import CONFIGS, read_yaml
from efface.train.memory import BUCKET, Memory, fits, memory
from efface.train.method import Method, get_method, parse_config
from efface.train.passes import Size, size_of

UNET, VAE, TEXT_ENCODER = 859_520_964, 83_653_863, 123_060_480
U = 813_495_680  # what ESD-u trains
X = 43_962_560  # the cross-attention
PARTS = ("student", "gradients", "optimizer", "communication", "host")


@pytest.fixture(scope="session")
def sd() -> Size:
    return size_of(read_base("sd-v1-4"))


def method(name: str, **config: Any) -> Method:
    return get_method(name)(parse_config(name, config))


def parts(found: Memory) -> tuple[int, ...]:
    return tuple(getattr(found, name) for name in PARTS)


@pytest.fixture(scope="module")
def esd_u() -> Method:
    return method("esd", variant="u")


def test_on_one_gpu_there_are_weights_gradients_and_adams_two_moments(sd: Size, esd_u: Method) -> None:
    found = memory(esd_u, sd)
    assert found.base == 4 * (UNET + VAE + TEXT_ENCODER)
    assert parts(found) == (4 * UNET, 4 * U, 8 * U, 0, 0)
    assert found.update == 4 * U  # the root of the second moments
    # One roll-out step of two rows, one training row; the step comes when its activations are gone.
    assert found.rollout < found.training < found.update
    assert found.peak == found.base + 4 * UNET + 16 * U


@pytest.mark.parametrize(
    ("zero", "offload", "expected"),
    [
        (0, "none", (4 * UNET, 4 * U, 8 * U, 4 * U, 0)),
        (1, "none", (4 * UNET, 4 * U, 12 * U // 8, 4 * BUCKET, 0)),
        (2, "none", (4 * UNET, 4 * U // 8, 12 * U // 8, 4 * BUCKET, 0)),
        (2, "optimizer", (4 * UNET, 0, 0, 4 * BUCKET, 20 * U // 8)),
        (3, "none", (4 * UNET // 8 + 4 * UNET, 4 * U // 8, 12 * U // 8, 4 * BUCKET, 0)),
        (3, "all", (4 * UNET, 0, 0, 4 * BUCKET, 20 * U // 8 + 4 * UNET // 8)),
    ],
)
def test_what_eight_gpus_share(zero: Any, offload: Any, expected: tuple[int, ...], sd: Size, esd_u: Method) -> None:
    """4 bytes for a value of ZeRO's own and 8 for its two moments are spread in every stage, gradients from 2 on."""
    assert parts(memory(esd_u, sd, processes=8, zero=zero, offload=offload)) == expected


def test_the_bucket_is_that_of_the_configs() -> None:
    files = sorted((CONFIGS / "deepspeed").glob("*.yaml"))
    sizes = {file.stem: read_yaml(file)["zero_optimization"]["reduce_bucket_size"] for file in files}
    assert sizes and set(sizes.values()) == {BUCKET}


def test_in_bf16_trained_weights_stay_fp32_and_the_teacher_is_copied(sd: Size) -> None:
    found = memory(method("esd", precision="bf16"), sd)
    assert (found.student, found.teacher) == (4 * X + 2 * (UNET - X), 2 * UNET)
    assert (found.gradients, found.optimizer) == (4 * X, 8 * X)
    assert found.base == 4 * (UNET + VAE + TEXT_ENCODER)


@pytest.mark.parametrize(
    ("optimizer", "states", "update"), [("sgd", 0, 0), ("adamw", 8 * X, 4 * X), ("adam", 8 * X, 8 * X)]
)
def test_the_optimizer_decides_the_states(optimizer: str, states: int, update: int, sd: Size) -> None:
    found = memory(method("esd", optimizer=optimizer, weight_decay=0.01), sd)
    assert (found.optimizer, found.update) == (states, update)


def test_activations_are_those_of_the_batch(sd: Size) -> None:
    one, three = (memory(method("esd", batch_size=rows), sd) for rows in (1, 3))
    assert three.training == pytest.approx(3 * one.training, rel=0.01)
    assert three.rollout == pytest.approx(3 * one.rollout, rel=0.01)
    checkpointed = memory(method("esd", batch_size=3), sd, checkpointing=True)
    assert checkpointed.training < three.training / 2 and replace(checkpointed, training=three.training) == three


def test_a_closed_form_needs_its_base_and_the_new_values(sd: Size) -> None:
    """19,169,280 keys and values in fp32; the largest matrix, 1280 x 768, and its product in fp64."""
    found = memory(method("uce"), sd)
    assert found.peak == 4 * (UNET + VAE + TEXT_ENCODER) + 4 * 19_169_280 + 2 * 8 * 1280 * 768


def test_what_is_made_beforehand_counts_where_it_is_the_most(sd: Size) -> None:
    """CA draws images of the anchor, eight at once: at 512 px the VAE's widest tensors have 268 MB an image."""
    found = memory(method("ca", batch_size=1), sd)
    assert found.preparation > 8 * 2 * 4 * 256 * 512 * 512
    assert found.peak == found.base + found.student + found.preparation


def test_esd_u_fits_a_card_of_24_gb_with_zero_2_and_offload(sd: Size, esd_u: Method) -> None:
    found = memory(esd_u, sd, zero=2, offload="optimizer")
    assert fits(found, 24) and fits(found, 16)
    assert found.host == 20 * U


def test_a_card_keeps_2_gb_for_itself() -> None:
    found = Memory(10**9, 0, 0, 0, 0, 0, 0, 0, 13 * 10**9, 0, 0)
    assert found.peak == 14 * 10**9 and fits(found, 16) and not fits(found, 15.9)


def test_peak_is_the_worst_phase() -> None:
    """Weights are there always; gradients and states once the data are made; of the rest, one at a time."""
    counted = Memory(
        base=1, teacher=2, student=4, gradients=8, optimizer=16, communication=32, preparation=0, rollout=64,
        training=128, update=256, host=10**6,
    )  # fmt: skip
    assert counted.peak == 1 + 2 + 4 + 8 + 16 + 32 + 256
    assert replace(counted, update=0, rollout=512).peak == 63 + 512
    assert replace(counted, preparation=1000).peak == 7 + 1000
