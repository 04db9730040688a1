"""Weight changes against closed forms."""

import math

import pytest
import torch

from efface.eval.metrics.weight_change import measure, weight_change
from efface.eval.weight_change_values import LayerChange, Norms, WeightChange, layer_of, mean_layers, mean_weight_change
from efface.models.base import Base
from efface.models.delta import Delta


def weights(base: Base, tensors: dict[str, torch.Tensor]) -> Delta:
    return Delta("weights", tensors, {"base_id": base.fingerprint})


def kv(base: Base) -> str:
    return next(name for name in base.originals() if "attn2.to_k.weight" in name)


def test_every_norm_of_a_change_of_three_and_four() -> None:
    originals = {"a": torch.tensor([1.0, 2.0, 2.0]), "b": torch.zeros(3)}
    change = measure(originals, {"a": torch.tensor([4.0, 2.0, 2.0]), "b": torch.tensor([0.0, -4.0, 0.0])})
    assert vars(change) == {
        "challenge": 5 / 6,
        "global_l2": 5.0,
        "relative_l2": pytest.approx(5 / 3),
        "global_l1": 7.0,
        "changed_tensors": 2,
        "parameters": 6,
    }


def test_a_small_change_of_a_large_number_is_not_lost() -> None:
    # In fp32 the square of 2^-12 beside 2^12 squared would vanish from a common sum.
    original = torch.tensor([4096.0])
    assert measure({"a": original}, {"a": original + 2**-11}).global_l2 == 2**-11


def test_one_shifted_tensor_is_measured_over_all_parts_over_the_unet_and_in_its_groups(tiny_base: Base) -> None:
    name, originals = kv(tiny_base), tiny_base.originals()
    count = originals[name].numel()
    change = weight_change(tiny_base, weights(tiny_base, {name: (originals[name].double() + 0.5).float()}))
    distance = 0.5 * math.sqrt(count)
    everything = sum(tensor.numel() for tensor in originals.values())
    unet = sum(parameter.numel() for parameter in tiny_base.unet.parameters())
    assert change.all.parameters == everything
    assert change.unet.parameters == unet
    assert change.all.global_l2 == change.unet.global_l2 == pytest.approx(distance, rel=1e-6)
    assert change.all.challenge == pytest.approx(distance / everything, rel=1e-6)
    assert change.unet.challenge == pytest.approx(distance / unet, rel=1e-6)
    assert change.all.global_l1 == pytest.approx(0.5 * count, rel=1e-6)
    assert {"kv-xattn", "xattn", "full"} <= set(change.groups)
    assert not {"selfattn", "v-xattn", "noxattn", "te-full"} & set(change.groups)
    assert {group.changed_tensors for group in change.groups.values()} == {1}


def test_a_text_encoder_delta_leaves_the_unet_unchanged(tiny_base: Base) -> None:
    name = next(name for name in tiny_base.originals() if name.startswith("text_encoder.") and "q_proj.weight" in name)
    change = weight_change(tiny_base, weights(tiny_base, {name: tiny_base.originals()[name] * 2}))
    assert change.unet.global_l2 == change.unet.changed_tensors == 0
    assert change.all.global_l2 == pytest.approx(float(tiny_base.originals()[name].double().norm()))


def test_an_adapter_is_merged_before_it_is_measured(tiny_base: Base) -> None:
    module = kv(tiny_base).removesuffix(".weight")
    rows, columns = tiny_base.originals()[f"{module}.weight"].shape
    tensors = {
        f"{module}.down": torch.ones(2, columns),
        f"{module}.up": torch.full((rows, 2), 0.25),
        f"{module}.alpha": torch.tensor(1.0),
    }
    change = weight_change(tiny_base, Delta("adapter", tensors, {"base_id": tiny_base.fingerprint}))
    # alpha / rank * up @ down = 1/2 * (2 * 0.25) = 0.25 everywhere
    assert change.all.global_l2 == pytest.approx(0.25 * math.sqrt(rows * columns), rel=1e-5)


def test_a_delta_that_is_swapped_in_is_still_measured_against_the_originals(tiny_base: Base) -> None:
    delta = weights(tiny_base, {kv(tiny_base): tiny_base.originals()[kv(tiny_base)] + 1})
    before = weight_change(tiny_base, delta)
    tiny_base.swap(delta)
    assert weight_change(tiny_base, delta) == before


def test_values_that_equal_the_base_change_nothing(tiny_base: Base) -> None:
    change = weight_change(tiny_base, weights(tiny_base, {kv(tiny_base): tiny_base.originals()[kv(tiny_base)].clone()}))
    assert change.all.changed_tensors == 0
    assert change.all.relative_l2 == 0.0
    assert change.groups == {}


def test_the_mean_over_models_counts_an_untouched_group_as_zero() -> None:
    def change(distance: float) -> Norms:
        originals, edited = {"a": torch.zeros(2) + 1}, {"a": torch.tensor([1.0 + distance, 1.0])}
        return measure(originals, edited)

    one = WeightChange(change(1.0), change(1.0), {"xattn": change(1.0)})
    two = WeightChange(change(3.0), change(0.0), {})
    mean = mean_weight_change([one, two])
    assert mean.all.challenge == 1.0  # (1/2 + 3/2) / 2
    assert mean.unet.global_l2 == 0.5
    assert mean.groups["xattn"].global_l1 == 0.5
    assert mean.groups["xattn"].parameters == 2


def test_each_layer_has_the_norm_of_its_own_tensors(tiny_base: Base) -> None:
    """By concatenating the layer's tensors into one vector, in numpy; a layer that nothing touched is not there."""
    import numpy as np

    originals = tiny_base.originals()
    attention, head = "unet.down_blocks.0.attentions.0", "unet.conv_out"
    edited = {
        name: tensor + (0.25 if name.endswith("to_k.weight") else 0.0)
        for name, tensor in originals.items()
        if name.startswith((f"{attention}.", "unet.mid_block."))
    }
    edited = {name: tensor for name, tensor in edited.items() if name.startswith(attention) or "resnets" in name}
    edited[f"{head}.bias"] = originals[f"{head}.bias"] - 1
    layers = weight_change(tiny_base, weights(tiny_base, edited)).layers
    assert list(layers) == sorted({attention, head}, key=[*map(layer_of, originals)].index)
    for layer, change in layers.items():
        names = [name for name in originals if name.startswith(f"{layer}.")]
        before = np.concatenate([originals[name].double().numpy().ravel() for name in names])
        after = np.concatenate([edited.get(name, originals[name]).double().numpy().ravel() for name in names])
        assert change.global_l2 == pytest.approx(np.linalg.norm(after - before), rel=1e-12)
        assert change.relative_l2 == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v.weight", "unet.up_blocks.1.attentions.2"),
        ("unet.mid_block.resnets.0.conv1.weight", "unet.mid_block.resnets.0"),
        ("unet.time_embedding.linear_1.bias", "unet.time_embedding"),
        ("text_encoder.text_model.encoder.layers.11.mlp.fc2.weight", "text_encoder.encoder.layers.11"),
        ("text_encoder.embeddings.token_embedding.weight", "text_encoder.embeddings"),
    ],
)
def test_a_tensor_belongs_to_the_block_that_diffusers_names(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_the_mean_of_a_layer_counts_models_that_leave_it_alone() -> None:
    means = mean_layers([{"unet.conv_in": LayerChange(3.0, 0.5)}, {"unet.conv_out": LayerChange(1.0, 0.25)}])
    assert means == {"unet.conv_in": LayerChange(1.5, 0.25), "unet.conv_out": LayerChange(0.5, 0.125)}
