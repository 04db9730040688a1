"""The files of a base: those that are read and no others; what is in doubt is refused by what it is."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.errors import UserError
from efface.models.base import base_id, load_base, read_base
from efface.models.files.component_files import folder_parts

WHOLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{WHOLE}.index.json"
PARTS = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.fixture
def folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "copy"))


def split(unet: Path) -> None:
    """The UNet's weights in two parts and an index, as diffusers saves large ones."""
    tensors = sorted(load_file(unet / WHOLE).items())
    (unet / WHOLE).unlink()
    weight_map = {}
    for name, some in zip(PARTS, (tensors[:50], tensors[50:]), strict=True):
        save_file(dict(some), unet / name, {"format": "pt"})
        weight_map |= dict.fromkeys(dict(some), name)
    (unet / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def refused(folder: Path, match: str) -> None:
    """When the identity is computed as when the model is loaded; in one line."""
    for read in (lambda: base_id(read_base(folder)), lambda: load_base(folder)):
        with pytest.raises(UserError, match=match) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_base_is_loaded_from_its_parts_alone(folder: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    for file in folder_parts(folder).files():
        (alone / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, alone / file.relative_to(folder))
    one, other = load_base(alone), load_base(tiny_base_folder)
    assert one.fingerprint == other.fingerprint
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
    assert one.tokenizer("a cat")["input_ids"] == other.tokenizer("a cat")["input_ids"]


def test_shards_are_loaded_as_the_whole(folder: Path, tiny_base_folder: Path) -> None:
    split(folder / "unet")
    one, other = load_base(folder), load_base(tiny_base_folder)
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("beside", [INDEX, PARTS[0]])
def test_weights_that_are_there_twice_are_refused(folder: Path, beside: str) -> None:
    """diffusers would take the parts, transformers the whole."""
    if beside == INDEX:
        (folder / "unet" / INDEX).write_text(json.dumps({"weight_map": {"conv_in.weight": "other.safetensors"}}))
    else:
        save_file({"x": torch.zeros(1)}, folder / "unet" / beside)
    refused(folder, rf"unet: which are the weights, {WHOLE} or {beside} and its parts\?")


def test_parts_of_another_saving_are_refused(folder: Path) -> None:
    split(folder / "unet")
    (folder / "unet" / INDEX).unlink()
    shutil.copy(folder / "unet" / PARTS[0], folder / "unet" / PARTS[0].replace("of-00002", "of-00003"))
    refused(folder, "unet: the parts of the weights do not belong together, see .*of-00003")


def test_a_missing_part_is_refused(folder: Path) -> None:
    split(folder / "unet")
    (folder / "unet" / INDEX).unlink()
    (folder / "unet" / PARTS[0]).unlink()
    refused(folder, "unet: the parts of the weights do not belong together, see .*00001-of-00002")


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", 7, None])
def test_an_index_that_names_other_files_is_refused(folder: Path, name: object) -> None:
    split(folder / "unet")
    index = json.loads((folder / "unet" / INDEX).read_text())
    index["weight_map"]["conv_in.weight"] = name
    (folder / "unet" / INDEX).write_text(json.dumps(index))
    refused(folder, r"index\.json: names other files than the parts")


def test_a_tensor_in_two_parts_is_refused(folder: Path) -> None:
    split(folder / "unet")
    (folder / "unet" / INDEX).unlink()
    second = folder / "unet" / PARTS[1]
    save_file(load_file(second) | {"conv_in.bias": torch.zeros(16)}, second)
    with pytest.raises(UserError, match=r"00002-of-00002.*: holds 'conv_in\.bias', as another part"):
        load_base(folder)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_an_adapter_beside_the_weights_is_refused(folder: Path, component: str) -> None:
    """transformers would load it into the text encoder without a word."""
    (folder / component / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    refused(folder, rf"{component}: there is an adapter beside the weights .*fuse_lora.*, or take it away")


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("diffusion_pytorch_model.bin", "a pickle, which could run code"),
        ("diffusion_flax_model.msgpack", "Flax weights, .* from_flax=True"),
        ("model.onnx", "an exported model, .* name the model that it was exported from"),
        (
            "diffusion_pytorch_model.fp16.safetensors",
            r"only the variant .*fp16.*; rename it to diffusion_pytorch_model",
        ),
        ("config.json", "holds no diffusion_pytorch_model.safetensors, which a base needs"),
    ],
)
def test_other_weights_are_refused_by_what_they_are(folder: Path, file: str, match: str) -> None:
    (folder / "unet" / WHOLE).unlink()
    (folder / "unet" / file).touch()
    refused(folder, f"unet: .*{match}")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: Path) -> None:
    (folder / "unet" / "config.json").unlink()
    os.mkfifo(folder / "unet" / "config.json")
    refused(folder, r"unet/config\.json: no such file")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (json.dumps({"a": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}), "nested too deeply"),
        ("{", "not valid JSON"),
        ("[]", "holds a list, should be a mapping"),
        (" " * 2**20 + "{}", "larger than 1024 KiB"),
    ],
)
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_a_config_without_bounds_is_refused(folder: Path, file: str, text: str, match: str) -> None:
    (folder / file).write_text(text)
    refused(folder, f"{file}: .*{match}")


@pytest.mark.parametrize(
    "key", ["auto_map", "fast_tokenizer_files", "vocab_file", "merges_file", "tokenizer_file", "trust_remote_code"]
)
def test_a_tokenizer_that_asks_for_other_files_or_code_is_refused(folder: Path, key: str) -> None:
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: ["../secret.json"]}))
    refused(folder, rf"tokenizer_config\.json: has '{key}', which a base may not have")


@pytest.mark.parametrize("file", ["tekken.json", "tokenizer.model.v3", "tokenizer.4.0.0.json"])
def test_a_strange_file_beside_the_tokenizer_is_not_read(folder: Path, tiny_base_folder: Path, file: str) -> None:
    (folder / "tokenizer" / file).write_text("a trap")
    one, other = load_base(folder), load_base(tiny_base_folder)
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert one.fingerprint == other.fingerprint


def test_a_tokenizer_wider_than_the_text_encoder_is_refused(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 10**9}))
    with pytest.raises(UserError, match="model_max_length is 1000000000, and the text encoder reads 77 tokens"):
        load_base(folder)


def test_a_token_without_a_vector_is_refused(folder: Path) -> None:
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<toy>": 514}))
    with pytest.raises(UserError, match="has tokens up to number 514, and the text encoder vectors for 514"):
        load_base(folder)


@pytest.mark.parametrize("sample_size", [10**9, 0, -8])
def test_an_image_size_that_cannot_be_is_refused(folder: Path, sample_size: int) -> None:
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": sample_size}))
    with pytest.raises(UserError, match=rf"sample_size {sample_size} makes images of {2 * sample_size} pixels"):
        read_base(folder)
