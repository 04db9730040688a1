"""Adapters on a toy model: what they compute and what they are called."""

import copy

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from efface.models.adapters import Adapters, add_adapters
from efface.models.parameter_groups import select

NAMES = ("net.proj_in", "net.inner.0", "net.inner.2")


class Toy(nn.Module):
    """A 1x1 convolution, then two linear layers over the pixels' channels."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(4, 6, 1)
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.proj_in(x).flatten(2).transpose(1, 2))


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))


def adapted(model: nn.Module, rank: int = 2, alpha: float = 3.0, trained: bool = True) -> Adapters:
    adapters = add_adapters({"net": model}, NAMES, rank, alpha, torch.Generator().manual_seed(2))
    if trained:
        for index, adapter in enumerate(adapters.layers.values()):
            noise = torch.Generator().manual_seed(index)
            adapter.up.data = torch.randn(adapter.up.shape, generator=noise)
    return adapters


def test_a_fresh_adapter_changes_nothing(toy: Toy, x: Tensor) -> None:
    before = toy(x)
    adapted(toy, trained=False)
    assert torch.equal(toy(x), before)


def test_an_adapted_layer_is_the_layer_with_its_weight_merged(toy: Toy, x: Tensor) -> None:
    merged = copy.deepcopy(toy)
    adapters = adapted(toy, rank=2, alpha=3.0)
    for name, adapter in adapters.layers.items():
        layer = merged.get_submodule(name.removeprefix("net."))
        up, down = adapter.up.detach().numpy(), adapter.down.detach().numpy()
        product = np.einsum("orhw,rihw->oihw", up, down) if up.ndim == 4 else up @ down
        layer.weight.data += torch.from_numpy(3.0 / 2 * product)
    torch.testing.assert_close(toy(x), merged(x), rtol=1e-5, atol=1e-6)


def test_names_lead_back_to_the_layers_and_the_base_keeps_its_own(toy: Toy) -> None:
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    adapters = adapted(toy, rank=2)
    assert set(adapters.tensors()) == {f"{name}.{part}" for name in NAMES for part in ("down", "up", "alpha")}
    assert adapters.tensors()["net.proj_in.down"].shape == (2, 4, 1, 1)
    assert adapters.tensors()["net.inner.0.up"].shape == (8, 2)
    assert adapters.tensors()["net.inner.0.alpha"] == 3.0
    after = toy.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_gradients_reach_the_adapters_and_nothing_else(toy: Toy, x: Tensor) -> None:
    adapters = adapted(toy)
    toy(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.parameters().values())
    own = {id(p) for p in adapters.parameters().values()}
    assert all(p.grad is None for p in toy.parameters() if id(p) not in own)
    assert own == {id(p) for p in toy.parameters() if p.requires_grad}


def test_down_is_uniform_within_one_over_the_root_of_its_inputs_and_the_same_by_seed() -> None:
    big = nn.Sequential(nn.Linear(400, 3))
    first, second = (
        add_adapters({"net": copy.deepcopy(big)}, ["net.0"], 50, 1.0, torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    down = first.layers["net.0"].down.detach()
    assert torch.equal(down, second.layers["net.0"].down)
    bound = 1 / 400**0.5  # kaiming_uniform with a = sqrt(5): sqrt(6 / ((1 + 5) fan_in))
    assert 0.99 * bound < down.abs().max() <= bound
    assert abs(down.std().item() - bound / 3**0.5) < 0.02 * bound


def test_a_deep_copy_has_adapters_of_its_own(toy: Toy, x: Tensor) -> None:
    adapters = adapted(toy)
    before = toy(x)
    twin = copy.deepcopy(toy)
    for adapter in adapters.layers.values():
        adapter.up.data.zero_()
    assert torch.equal(twin(x), before)
    assert not torch.equal(toy(x), before)


def test_stable_diffusion_1_4_has_192_layers_for_rank_one_adapters_of_423936_numbers() -> None:
    # the counts of FADE's released adapters
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    names = [name.removesuffix(".weight") for name in select({"unet": unet}, "transformer")]
    adapters = add_adapters({"unet": unet}, names, 1, 1.0, torch.Generator())
    assert len(names) == 192
    assert sum(value.numel() for value in adapters.parameters().values()) == 423_936
