"""What a pass costs: counts on the meta device against real tensors on the CPU, the profiler and closed forms."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.profiler import ProfilerActivity, profile

from efface.models.activation_cost import pass_cost, unet_pass_cost
from efface.models.base import Base, architecture
from efface.models.loading import empty_components
from efface.models.parameter_groups import select

ROWS, SIDE = 2, 8


def names(unet: UNet2DConditionModel, group: str) -> list[str]:
    return [name.removeprefix("unet.") for name in select({"unet": unet}, group)]


def on_meta(base: Base) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(base.unet.config)


def real_pass(base: Base, group: str) -> torch.Tensor:
    """The loss of a forward pass of real numbers, whose backward is still to come."""
    for parameter in select(base, group).values():
        parameter.requires_grad_(True)
    latents, embedding = torch.randn(ROWS, 4, SIDE, SIDE), torch.randn(ROWS, 77, 16)
    return base.unet(latents, torch.zeros(ROWS, dtype=torch.int64), embedding).sample.square().mean()


@pytest.mark.parametrize("group", ["full", "noxattn", "xattn", "kv-xattn"])
def test_saved_bytes_are_those_of_real_tensors(tiny_base: Base, group: str) -> None:
    weights = {parameter.untyped_storage().data_ptr() for parameter in tiny_base.unet.parameters()}
    real: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        real[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predicted = real_pass(tiny_base, group)
        # The loss itself keeps the prediction, which `saved` leaves to the method.
        prediction = 4 * ROWS * 4 * SIDE * SIDE
    kept = sum(size for place, size in real.items() if place not in weights)
    unet = on_meta(tiny_base)
    counted = unet_pass_cost(unet, names(unet, group), ROWS, SIDE, SIDE).saved
    # A GPU's attention keeps its statistics in multiples of 32 rows, and 16 bytes of random state a layer.
    assert counted + prediction == pytest.approx(kept, rel=1e-3)
    predicted.backward()


def small_unet() -> UNet2DConditionModel:
    """Of 5 million weights: large enough that what torch's kernels use for themselves does not count."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=8,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("group", ["full", "kv-xattn"])
def test_the_peak_is_that_of_torchs_profiler(group: str, checkpointing: bool) -> None:
    """Sums of what the CPU's allocator gave and took back, as the profiler writes them down."""
    unet = small_unet().requires_grad_(False)
    for parameter in select({"unet": unet}, group).values():
        parameter.requires_grad_(True)
        parameter.grad = torch.zeros_like(parameter)  # so that none is made, as none is counted
    if checkpointing:
        unet.enable_gradient_checkpointing()
    latents, embedding = torch.randn(ROWS, 4, 16, 16), torch.randn(ROWS, 77, 16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        unet(latents, torch.zeros(ROWS, dtype=torch.int64), embedding).sample.square().mean().backward()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    with torch.device("meta"):
        shapes = small_unet()
    counted = unet_pass_cost(shapes, names(shapes, group), ROWS, 16, 16, checkpointing=checkpointing).peak
    assert counted == pytest.approx(peak, rel=0.02)


def test_a_pass_without_gradient_keeps_nothing(tiny_base: Base) -> None:
    found = unet_pass_cost(on_meta(tiny_base), [], ROWS, SIDE, SIDE)
    assert (found.saved, found.backward_flops) == (0, 0) and found.peak > 0


def test_counting_leaves_the_unet_as_it_was(tiny_base: Base) -> None:
    before = {name: value.clone() for name, value in tiny_base.unet.state_dict().items()}
    unet_pass_cost(tiny_base.unet, names(tiny_base.unet, "full"), ROWS, SIDE, SIDE, "bf16", checkpointing=True)
    assert all(torch.equal(value, before[name]) for name, value in tiny_base.unet.state_dict().items())
    assert not any(parameter.requires_grad for parameter in tiny_base.unet.parameters())
    assert not tiny_base.unet.is_gradient_checkpointing


def linear(features: int, precision: Any) -> Any:
    """A linear layer with frozen norm before it, (8, features), counted on the meta device."""
    with torch.device("meta"):
        module = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, features, bias=False))
        rows = torch.zeros(8, features)
    module[0].requires_grad_(False)
    return pass_cost(module, lambda: module(rows), True, precision)


def test_a_linear_layer_keeps_its_input() -> None:
    """2 n^2 operations a row forward, and as many for the weight's gradient: its input has none to ask for."""
    found = linear(16, "fp32")
    assert found.saved == 8 * 16 * 4
    assert (found.forward_flops, found.backward_flops) == (8 * 2 * 16**2, 8 * 2 * 16**2)


def test_under_autocast_it_keeps_input_in_bf16() -> None:
    assert linear(16, "bf16").saved == 8 * 16 * 2


def test_under_autocast_a_trained_weight_is_there_a_second_time_in_bf16() -> None:
    """Where the layer before is trained too, a gradient goes through the second layer, and so its bf16 copy stays."""
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
        rows = torch.zeros(8, 16)
    found = pass_cost(module, lambda: module(rows), True, "bf16")
    assert found.saved == 2 * 8 * 16 * 2 + 16 * 16 * 2


@pytest.fixture(scope="module")
def sd() -> UNet2DConditionModel:
    return empty_components(architecture("sd-v1-4"))[0]


def test_a_forward_pass_of_stable_diffusion_is_803_gflop(sd: UNet2DConditionModel) -> None:
    """The figure published for its UNet at 512 px: 401.6 GMAC."""
    assert unet_pass_cost(sd, [], 1, 64, 64).forward_flops / 2e9 == pytest.approx(401.6, abs=0.1)


def test_checkpointing_trades_memory_for_a_second_forward(sd: UNet2DConditionModel) -> None:
    trained = names(sd, "kv-xattn")
    plain, traded = (unet_pass_cost(sd, trained, 1, 64, 64, checkpointing=on) for on in (False, True))
    assert traded.saved < plain.saved / 4 and traded.peak < plain.peak
    # All but the first and the last layers are in blocks that are computed again.
    again = traded.backward_flops - plain.backward_flops
    assert 0.7 * plain.forward_flops < again <= plain.forward_flops
