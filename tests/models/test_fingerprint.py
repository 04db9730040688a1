"""The fingerprint: the same for the same model, another as soon as one byte or one setting differs, and remembered."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.errors import UserError
from efface.models import fingerprint as module
from efface.models.base import base_id, load_base, read_base
from efface.models.files.component_files import Parts, folder_parts
from efface.models.fingerprint import fingerprint

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


def of(folder: Path) -> str:
    return fingerprint(folder_parts(folder))


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.fixture
def folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "copy"))


def test_a_copy_has_the_same(folder: Path, tiny_base_folder: Path) -> None:
    assert of(folder) == of(tiny_base_folder)


def test_the_order_of_tensors_in_the_file_and_its_metadata_do_not_matter(folder: Path) -> None:
    before = of(folder)
    tensors = load_file(folder / UNET)
    save_file(dict(reversed(tensors.items())), folder / UNET, metadata={"note": "another writer"})
    assert of(folder) == before


def test_shards_have_the_same_as_the_whole(folder: Path) -> None:
    before = of(folder)
    tensors = sorted(load_file(folder / UNET).items())
    (folder / UNET).unlink()
    for number, part in enumerate((tensors[:50], tensors[50:]), start=1):
        save_file(dict(part), (folder / UNET).with_name(f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"))
    assert of(folder) == before


def test_other_precisions_beside_the_weights_do_not_matter(folder: Path) -> None:
    before = of(folder)
    save_file({"x": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert of(folder) == before


@pytest.mark.parametrize("part", [UNET, Path("vae") / UNET.name, Path("text_encoder") / "model.safetensors"])
def test_one_flipped_bit_gives_another(folder: Path, tiny_base_folder: Path, part: Path) -> None:
    data = bytearray((folder / part).read_bytes())
    data[-1] ^= 1
    (folder / part).write_bytes(data)
    assert of(folder) != of(tiny_base_folder)


@pytest.mark.parametrize("file", ["merges.txt", "vocab.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_another_tokenizer_gives_another(folder: Path, tiny_base_folder: Path, file: str) -> None:
    with (folder / "tokenizer" / file).open("a") as tokens:
        tokens.write("\n")
    assert of(folder) != of(tiny_base_folder)


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer.json"])
def test_a_further_file_of_the_tokenizer_gives_another(folder: Path, tiny_base_folder: Path, file: str) -> None:
    (folder / "tokenizer" / file).write_text("{}")
    assert of(folder) != of(tiny_base_folder)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}),
        ("vae/config.json", {"scaling_factor": 0.13025}),
        ("text_encoder/config.json", {"hidden_act": "gelu"}),
        ("text_encoder/config.json", {"num_attention_heads": 4}),
        ("unet/config.json", {"attention_head_dim": 4}),
    ],
)
def test_the_same_weights_under_another_setting_are_another_base(
    folder: Path, tiny_base_folder: Path, file: str, settings: dict[str, Any]
) -> None:
    change(folder / file, **settings)
    assert base_id(read_base(folder)) == load_base(folder).fingerprint != of(tiny_base_folder)


def test_who_wrote_a_config_and_how_does_not_matter(folder: Path, tiny_base_folder: Path) -> None:
    written = {"_diffusers_version": "0.2.2", "_name_or_path": "elsewhere", "transformers_version": "4.20.0"}
    for file in ("scheduler/scheduler_config.json", "vae/config.json", "text_encoder/config.json", "unet/config.json"):
        config = json.loads((folder / file).read_text()) | written | {"torch_dtype": "float16", "dtype": "float16"}
        (folder / file).write_text(json.dumps(dict(reversed(config.items())), indent=7))
    assert of(folder) == of(tiny_base_folder)


def test_what_no_one_reads_does_not_matter(folder: Path, tiny_base_folder: Path) -> None:
    (folder / "README.md").write_text("about the model")
    (folder / "tokenizer" / "notes.txt").write_text("about the tokens")
    (folder / "safety_checker").mkdir()
    assert of(folder) == of(tiny_base_folder)


def parts(file: Path) -> Parts:
    return Parts(configs={}, tokenizer=(), weights={"checkpoint": (file,)})


def test_the_same_bytes_in_another_shape_give_another(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(3, 2)}, tmp_path / "b.safetensors")
    assert fingerprint(parts(tmp_path / "a.safetensors")) != fingerprint(parts(tmp_path / "b.safetensors"))


def test_it_is_the_documented_hash(tmp_path: Path) -> None:
    save_file({"b": torch.tensor([1.0]), "a": torch.tensor([2, 3])}, tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text('{"_diffusers_version": "1", "b": 1, "a": [true]}')
    (tmp_path / "vocab.json").write_text("{}\n")
    digest = hashlib.sha256()
    for name, dtype, shape, tensor in (("a", "I64", [2], torch.tensor([2, 3])), ("b", "F32", [1], torch.tensor([1.0]))):
        data = tensor.numpy().tobytes()
        digest.update(json.dumps(["checkpoint", name, dtype, json.dumps(shape), len(data)]).encode() + data)
    digest.update(b'["config", "unet", "", "", 18]{"a":[true],"b":1}')
    digest.update(b'["tokenizer", "vocab.json", "", "", 3]{}\n')
    found = Parts(
        {"unet": tmp_path / "config.json"}, (tmp_path / "vocab.json",), parts(tmp_path / "x.safetensors").weights
    )
    assert fingerprint(found) == digest.hexdigest()


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may have been written a moment ago, and are remembered all the same."""
    monkeypatch.setattr(module, "UNSETTLED", -60.0)


@pytest.mark.usefixtures("at_rest")
def test_it_is_remembered_until_the_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(folder)
    monkeypatch.setattr(module, "_digest", lambda parts, seed: "computed anew")
    assert of(folder) == before
    os.utime(folder / UNET, ns=(1, 1))
    assert of(folder) == "computed anew"


def flip(file: Path) -> None:
    """Flips the last bit of a file, with its old time of modification."""
    times = file.stat()
    with file.open("r+b") as data:
        data.seek(-1, os.SEEK_END)
        (last,) = data.read(1)
        data.seek(-1, os.SEEK_END)
        data.write(bytes([last ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.usefixtures("at_rest")
@pytest.mark.parametrize("in_place", [True, False])
def test_another_content_of_the_same_size_and_time_is_seen(folder: Path, in_place: bool) -> None:
    before, file = of(folder), folder / UNET
    time.sleep(0.02)  # the kernel's clock ticks a hundred times a second
    if in_place:
        flip(file)
    else:
        other = Path(shutil.copy2(file, file.with_name("other")))
        flip(other)
        other.replace(file)
    assert of(folder) != before


@pytest.mark.parametrize(
    ("changed", "inode"),
    [(time.time_ns, 7), (lambda: 2 * time.time_ns(), 7), (lambda: 10**18, 7), (lambda: 0, 7), (lambda: 10**18 + 1, 0)],
    ids=["a moment ago", "in the future", "whole seconds", "no time", "no inode"],
)
def test_where_times_cannot_be_trusted_it_is_computed_every_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changed: Callable[[], int], inode: int
) -> None:
    """As on a mounted object store, where a file's times and inode say nothing of its content."""
    when = changed()
    monkeypatch.setattr(module, "_stat", lambda file: [str(file), file.stat().st_size, 1, when, inode])
    before = of(folder)
    flip(folder / UNET)
    assert of(folder) != before


def test_otherwise_it_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_stat", lambda file: [str(file), file.stat().st_size, 1, 10**18 + 1, 7])
    before = of(folder)
    flip(folder / UNET)
    assert of(folder) == before


def test_a_cache_that_cannot_be_written_does_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(folder)
    monkeypatch.setenv("EFFACE_CACHE", "/dev/null/cache")
    assert of(folder) == before


def test_a_cut_file_is_a_users_mistake(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100])
    with pytest.raises(UserError, match=r"not a whole safetensors file"):
        of(folder)


def test_a_folder_without_weights_is_a_users_mistake(folder: Path) -> None:
    (folder / UNET).unlink()
    with pytest.raises(UserError, match=r"unet: holds no diffusion_pytorch_model\.safetensors"):
        of(folder)
