"""A component is all of its file and nothing else: no tensor is left to random numbers, and no renaming is guessed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.errors import UserError
from efface.models.base import load_base

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
LAST = {"unet": "conv_out.weight", "vae": "quant_conv.bias", "text_encoder": "final_layer_norm.weight"}
TITLES = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder"}
EACH = pytest.mark.parametrize("component", list(FILES))

Rename = Callable[[str], str]


@pytest.fixture
def folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "copy"))


def plain(name: str) -> str:
    return name.removeprefix("text_model.")


def rewrite(folder: Path, component: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """`change` is given the component's tensors, without the prefix that some releases of transformers write."""
    file = folder / FILES[component]
    save_file(change({plain(name): tensor for name, tensor in load_file(file).items()}), file, {"format": "pt"})


def renamed(folder: Path, component: str, rename: Rename) -> None:
    rewrite(folder, component, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_base(folder)
    assert "\n" not in str(caught.value)


@EACH
def test_a_tensor_that_is_missing_is_named(folder: Path, component: str) -> None:
    rewrite(folder, component, lambda tensors: {k: v for k, v in tensors.items() if k != LAST[component]})
    refused(folder, rf"{component}: lacks 1 of the \d+ tensors of the {TITLES[component]} \('{LAST[component]}'\)$")


@EACH
def test_a_tensor_that_is_none_of_its_own_is_named(folder: Path, component: str) -> None:
    rewrite(folder, component, lambda tensors: tensors | {"text_projection.weight": torch.zeros(2, 2)})
    refused(folder, rf"holds 1 that are none of the {TITLES[component]}'s \('text_projection\.weight'\)$")


@EACH
def test_a_tensor_of_another_shape_is_named(folder: Path, component: str) -> None:
    rewrite(folder, component, lambda tensors: tensors | {LAST[component]: torch.zeros(3, 1)})
    refused(folder, rf"holds, of the {TITLES[component]}, '{LAST[component]}' as 3 x 1 instead of \d+")


@EACH
def test_all_that_does_not_fit_is_named_in_one_sentence(folder: Path, component: str) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        first, *_, last = sorted(tensors)
        return {"strange": tensors[last]} | {k: v for k, v in tensors.items() if k != last} | {first: torch.zeros(7, 7)}

    rewrite(folder, component, change)
    refused(folder, r"lacks 1 of .*, and holds 1 that .*\('strange'\), and holds, of the .* as 7 x 7 instead of")


@EACH
def test_whole_numbers_are_no_weights(folder: Path, component: str) -> None:
    rewrite(folder, component, lambda tensors: tensors | {LAST[component]: tensors[LAST[component]].to(torch.int8)})
    refused(folder, rf"{LAST[component]}' is torch\.int8, should be of floating point")


@EACH
def test_a_text_in_a_name_does_not_break_the_sentence(folder: Path, component: str) -> None:
    rewrite(folder, component, lambda tensors: tensors | {"a\nb" * 100: torch.zeros(1)})
    refused(folder, r"'a\\nba\\nb")


@pytest.mark.parametrize(
    ("component", "rename"),
    [
        *((component, lambda name: f"module.{name}") for component in FILES),
        *((component, lambda name: f"_orig_mod.module.{name}") for component in FILES),
        *((component, lambda name: f"base_model.model.{name}") for component in FILES),
        ("unet", lambda name: f"unet.{name}"),
        ("unet", lambda name: name.replace("down_blocks.0.", "down_blocks.0._orig_mod.")),
        ("unet", lambda name: name.replace(".resnets.0.", ".resnets.0._checkpoint_wrapped_module.")),
        ("unet", lambda name: f"base_model.model.unet._fsdp_wrapped_module.{name}"),
        ("vae", lambda name: f"vae.{name}"),
        ("vae", lambda name: old_attention(name)),
        ("text_encoder", lambda name: f"text_model.{name}"),
        ("text_encoder", lambda name: f"module.text_model.{name}"),
        ("text_encoder", lambda name: name),
    ],
)
def test_what_wrappers_and_releases_put_into_names_is_taken_off(
    folder: Path, tiny_base_folder: Path, component: str, rename: Rename
) -> None:
    renamed(folder, component, rename)
    one, other = load_base(folder).tensors(), load_base(tiny_base_folder).tensors()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def old_attention(name: str) -> str:
    """As the VAE of Stable Diffusion v1.4 has it on the hub."""
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def test_position_ids_of_older_files_do_not_matter(folder: Path, tiny_base_folder: Path) -> None:
    rewrite(folder, "text_encoder", lambda tensors: tensors | {"embeddings.position_ids": torch.arange(77)[None]})
    one, other = load_base(folder).tensors(), load_base(tiny_base_folder).tensors()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


@EACH
def test_names_that_only_look_alike_are_not_guessed(folder: Path, component: str) -> None:
    renamed(folder, component, lambda name: f"student.{name}")
    refused(folder, rf"all names of the {TITLES[component]}'s tensors begin with 'student\.', .* save_pretrained")


@EACH
def test_a_tensor_under_two_names_is_refused(folder: Path, component: str) -> None:
    rewrite(folder, component, lambda tensors: tensors | {f"module.{LAST[component]}": tensors[LAST[component]] + 1})
    refused(folder, rf"{component}: holds '{LAST[component]}' twice, as '.*', '.*'")


@pytest.mark.parametrize(
    ("component", "old", "new"),
    [
        ("unet", "to_q.", "to_q.base_layer."),
        ("text_encoder", "q_proj.", "q_proj.base_layer."),
        ("unet", "conv_out.weight", "conv_out.lora_A.default.weight"),
        ("text_encoder", "final_layer_norm.bias", "final_layer_norm.modules_to_save.default.bias"),
    ],
)
def test_adapters_that_are_still_attached_are_refused(folder: Path, component: str, old: str, new: str) -> None:
    renamed(folder, component, lambda name: name.replace(old, new))
    refused(folder, rf"{component}: adapters are still attached to the {TITLES[component]} \(.*merge_and_unload")


def test_two_loads_are_the_same_model(folder: Path) -> None:
    one, other = load_base(folder).tensors(), load_base(folder).tensors()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_loaded_base_does_not_change_with_its_file(folder: Path) -> None:
    base = load_base(folder)
    before = base.unet.conv_out.weight.clone()
    with (folder / FILES["unet"]).open("r+b") as file:
        file.seek(-4096, 2)
        file.write(bytes(4096))
    assert torch.equal(base.unet.conv_out.weight, before)
