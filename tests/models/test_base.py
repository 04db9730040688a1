"""A base: what its name means, what is loaded, and how deltas go in and come out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efface.errors import UserError
from efface.models.base import Base, base_id, load_base, read_base
from efface.models.delta import Delta


def copies(base: Base) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in base.tensors().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def raised(base: Base, name: str, by: float) -> Delta:
    return Delta("weights", {name: base.tensors()[name] + by}, {"base_id": base.fingerprint})


def test_what_a_base_is_can_be_read_without_torch() -> None:
    code = (
        "import sys; from efface.models import base, fingerprint, recipe; from efface.models.files import model_files;"
        "base.read_base('sd-v1-4');"
        "[base.base_id(base.read_base(name)) for name in ('sd-v1-4-random', 'miniature')];"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["miniature", "sd-v1-4", "sd-v1-4-random"])
def test_a_shipped_name_means_the_base_of_that_name(name: str) -> None:
    assert read_base(name).name == name


def test_a_folder_tells_its_image_size(tiny_base_folder: Path) -> None:
    spec = read_base(tiny_base_folder)
    assert (spec.source, spec.image_size) == (str(tiny_base_folder), 16)


def test_a_yaml_file_of_ones_own_is_a_base(tmp_path: Path, tiny_base_folder: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"name: mine\nsource: {tiny_base_folder}\nimage_size: 16\n")
    assert load_base(tmp_path / "mine.yaml").spec.name == "mine"


def test_a_name_with_one_slash_is_a_hub_id() -> None:
    assert read_base("somebody/some-model").source == "somebody/some-model"


@pytest.mark.parametrize("name", ["minature", "./no/such/folder", "model.ckpt"])
def test_a_name_that_means_nothing_is_a_users_mistake(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown base .*(did you mean 'miniature'|known are)"):
        read_base(name)


def test_a_hub_id_that_cannot_be_fetched_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^nobody/nothing: no such file or folder, not in the hub's cache.*\)$"):
        load_base("nobody/nothing")


def test_modules_are_frozen_in_eval_mode_and_fp32(tiny_base: Base) -> None:
    for module in tiny_base.modules.values():
        assert not module.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())


def test_half_precision_files_are_loaded_as_fp32(tmp_path: Path, tiny_base_folder: Path) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "half"))
    base = load_base(folder)
    weight = base.unet.conv_in.weight.clone()
    base.unet.to(torch.float16).save_pretrained(folder / "unet")
    loaded = load_base(folder).unet.conv_in.weight
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, weight.half().float())


def test_a_text_encoder_with_older_names_is_the_same_base(tmp_path: Path, tiny_base_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "older"))
    file = folder / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{k}": v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    assert same(load_base(folder).tensors(), load_base(tiny_base_folder).tensors())


def test_tensors_go_by_their_full_names(tiny_base: Base) -> None:
    tensors = tiny_base.tensors()
    assert tensors["unet.conv_in.weight"].data_ptr() == tiny_base.unet.conv_in.weight.data_ptr()
    assert "text_encoder.encoder.layers.0.self_attn.k_proj.weight" in tensors
    assert "vae.decoder.conv_in.weight" in tensors


def test_a_delta_goes_in_and_comes_out_without_a_trace(tiny_base: Base) -> None:
    before = copies(tiny_base)
    delta = raised(tiny_base, "unet.conv_in.weight", 1.0)
    tiny_base.swap(delta)
    assert torch.equal(tiny_base.unet.conv_in.weight, delta.tensors["unet.conv_in.weight"])
    assert same(tiny_base.originals(), before)
    tiny_base.swap(None)
    assert same(tiny_base.tensors(), before)


def test_a_second_delta_leaves_nothing_of_the_first(tiny_base: Base) -> None:
    before = copies(tiny_base)
    first, second = raised(tiny_base, "unet.conv_in.weight", 1), raised(tiny_base, "unet.conv_out.weight", 1)
    tiny_base.swap(first)
    tiny_base.swap(second)
    assert same(tiny_base.tensors(), before | second.tensors)


def test_what_is_in_place_tells_states_of_a_base_apart(tiny_base: Base) -> None:
    one, other = raised(tiny_base, "unet.conv_in.weight", 1), raised(tiny_base, "unet.conv_in.weight", 2)
    seen = [tiny_base.state_id]
    for delta in (one, other, one, None):
        tiny_base.swap(delta)
        seen.append(tiny_base.state_id)
    assert seen[0] == seen[4] == tiny_base.fingerprint
    assert seen[1] == seen[3] and len(set(seen)) == 3


def test_a_delta_of_another_base_is_refused_and_changes_nothing(tiny_base: Base) -> None:
    applied = raised(tiny_base, "unet.conv_in.weight", 1)
    tiny_base.swap(applied)
    foreign = Delta("weights", dict(applied.tensors), {"base_id": "f" * 64})
    before = copies(tiny_base)
    with pytest.raises(UserError, match="was made from the base ffffffffffffffff"):
        tiny_base.swap(foreign)
    assert same(tiny_base.tensors(), before)
    tiny_base.swap(foreign, force=True)


@pytest.mark.parametrize("part", ["unet/config.json", "vae/config.json", "tokenizer/vocab.json"])
def test_a_folder_without_a_part_is_a_users_mistake(part: str, tmp_path: Path, tiny_base_folder: Path) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "broken"))
    (folder / part).unlink()
    with pytest.raises(UserError, match=part.split("/")[0]):
        load_base(folder)


def test_weights_that_do_not_fit_their_config_are_a_users_mistake(tmp_path: Path, tiny_base_folder: Path) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "broken"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"block_out_channels": [16, 64]}))
    with pytest.raises(UserError, match=r"unet: holds, of the UNet, '.*' as 32 instead of 64"):
        load_base(folder)


def test_a_pickle_in_a_folder_is_never_read(tmp_path: Path, tiny_base_folder: Path) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "pickled"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_base(tiny_base_folder).unet.state_dict(), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(UserError, match=r"unet: holds no .*\.safetensors but a pickle, which could run code"):
        load_base(folder)


def test_its_id_is_known_before_it_is_loaded(tiny_base: Base) -> None:
    assert base_id(tiny_base.spec) == tiny_base.fingerprint
