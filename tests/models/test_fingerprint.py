"""The fingerprint: the same for the same tensors, another as soon as one byte differs, and remembered."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.errors import UserError
from efface.models.fingerprint import fingerprint

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "copy"))


def test_a_copy_has_the_same(folder: Path, tiny_base_folder: Path) -> None:
    assert fingerprint(folder) == fingerprint(tiny_base_folder)


def test_the_order_of_tensors_in_the_file_and_its_metadata_do_not_matter(folder: Path) -> None:
    before = fingerprint(folder)
    tensors = load_file(folder / UNET)
    save_file(dict(reversed(tensors.items())), folder / UNET, metadata={"note": "another writer"})
    assert fingerprint(folder) == before


def test_shards_have_the_same_as_the_whole(folder: Path) -> None:
    before = fingerprint(folder)
    tensors = sorted(load_file(folder / UNET).items())
    (folder / UNET).unlink()
    for number, part in enumerate((tensors[:50], tensors[50:]), start=1):
        save_file(dict(part), (folder / UNET).with_name(f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"))
    assert fingerprint(folder) == before


def test_other_precisions_beside_the_weights_do_not_matter(folder: Path) -> None:
    before = fingerprint(folder)
    save_file({"x": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert fingerprint(folder) == before


@pytest.mark.parametrize("part", [UNET, Path("vae") / UNET.name, Path("text_encoder") / "model.safetensors"])
def test_one_flipped_bit_gives_another(folder: Path, tiny_base_folder: Path, part: Path) -> None:
    data = bytearray((folder / part).read_bytes())
    data[-1] ^= 1
    (folder / part).write_bytes(data)
    assert fingerprint(folder) != fingerprint(tiny_base_folder)


def test_another_tokenizer_gives_another(folder: Path, tiny_base_folder: Path) -> None:
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\na b\n")
    assert fingerprint(folder) != fingerprint(tiny_base_folder)


def test_the_same_bytes_in_another_shape_give_another(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(3, 2)}, tmp_path / "b.safetensors")
    assert fingerprint(tmp_path / "a.safetensors") != fingerprint(tmp_path / "b.safetensors")


def test_it_is_the_documented_hash(tmp_path: Path) -> None:
    save_file({"b": torch.tensor([1.0]), "a": torch.tensor([2, 3])}, tmp_path / "x.safetensors")
    digest = hashlib.sha256()
    for name, dtype, shape, tensor in (("a", "I64", [2], torch.tensor([2, 3])), ("b", "F32", [1], torch.tensor([1.0]))):
        data = tensor.numpy().tobytes()
        digest.update(json.dumps(["checkpoint", name, dtype, json.dumps(shape), len(data)]).encode() + data)
    assert fingerprint(tmp_path / "x.safetensors") == digest.hexdigest()


def test_it_is_remembered_until_the_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(folder)
    monkeypatch.setattr("efface.models.fingerprint._digest", lambda files: "computed anew")
    assert fingerprint(folder) == before
    os.utime(folder / UNET, ns=(1, 1))
    assert fingerprint(folder) == "computed anew"


def test_a_cache_that_cannot_be_written_does_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(folder)
    monkeypatch.setenv("EFFACE_CACHE", "/dev/null/cache")
    assert fingerprint(folder) == before


def test_a_cut_file_is_a_users_mistake(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100])
    with pytest.raises(UserError, match=r"not a whole safetensors file"):
        fingerprint(folder)


def test_a_folder_without_weights_is_a_users_mistake(folder: Path) -> None:
    (folder / UNET).unlink()
    with pytest.raises(UserError, match=r"unet: holds no diffusion_pytorch_model\.safetensors"):
        fingerprint(folder)
