"""An export is an ordinary diffusers folder: for old loaders and new ones, and for whoever may read files here."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers import __version__ as VERSION
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from efface.errors import UserError
from efface.models.base import Base, load_base
from efface.models.delta import Delta
from efface.models.export import export

TEXT_ENCODER = Path("text_encoder") / "model.safetensors"


@pytest.fixture
def with_prefix(tiny_base_folder: Path, tmp_path: Path) -> Base:
    """The tiny model, its text encoder's names as on the hub, where Stable Diffusion's all begin with `text_model.`."""
    folder = Path(copytree(tiny_base_folder, tmp_path / "hub"))
    tensors = load_file(folder / TEXT_ENCODER)
    names = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    save_file(names, folder / TEXT_ENCODER, metadata={"format": "pt"})
    return load_base(folder)


@pytest.fixture(params=["as on the hub", "as transformers writes it", "the miniature"])
def base(request: pytest.FixtureRequest) -> Base:
    """Bases whose own files differ in the names of the text encoder's tensors and in precision."""
    if request.param == "the miniature":
        return load_base("miniature")
    fixture = "with_prefix" if request.param == "as on the hub" else "tiny_base"
    return request.getfixturevalue(fixture)  # type: ignore[no-any-return]


def test_text_encoder_and_tokenizer_are_what_transformers_4_reads(base: Base, tmp_path: Path) -> None:
    export(base, None, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / TEXT_ENCODER)
    own = {name.removeprefix("text_encoder."): t for name, t in base.tensors().items() if name.startswith("text_")}
    assert tensors.keys() == {f"text_model.{name}" for name in own}
    assert all(torch.equal(tensors[f"text_model.{name}"], tensor) for name, tensor in own.items())
    vocabulary = json.loads((tmp_path / "out" / "tokenizer" / "vocab.json").read_text())
    assert vocabulary == base.tokenizer.get_vocab()
    lines = (tmp_path / "out" / "tokenizer" / "merges.txt").read_text().splitlines()
    assert lines[0].startswith("#version") and len(lines) == 1 + len(vocabulary) - 2 * 256 - 2  # as CLIP's vocabulary


def test_without_any_argument_it_loads_in_one_precision_and_draws(base: Base, tmp_path: Path) -> None:
    export(base, None, tmp_path / "out")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    size = base.spec.image_size
    pictures = pipeline("a cat", num_inference_steps=1, height=size, width=size, output_type="np").images
    assert pictures.shape == (1, size, size, 3)


def test_adapters_weighed_by_the_prompt_are_merged_when_asked_and_labelled(tiny_base: Base, tmp_path: Path) -> None:
    name = next(name for name in tiny_base.originals() if name.endswith(".attn2.to_k.weight"))
    layer, (rows, columns) = name.removesuffix(".weight"), tiny_base.originals()[name].shape
    rng = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, columns, generator=rng), torch.randn(rows, 2, generator=rng)
    tensors = {f"{layer}.down": down, f"{layer}.up": up, f"{layer}.alpha": torch.tensor(3.0)}
    hook = {"name": "spm", "config": {"prompts": ["cat"], "power": 2}}
    delta = Delta("hook", tensors, {"base_id": tiny_base.fingerprint, "hook": hook})
    with pytest.raises(UserError, match="with --static its adapters are merged"):
        export(tiny_base, delta, tmp_path / "out")
    export(tiny_base, delta, tmp_path / "out", merge_adapters=True)
    found = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")[name.removeprefix("unet.")]
    torch.testing.assert_close(found, tiny_base.originals()[name] + 1.5 * up @ down)
    written = json.loads((tmp_path / "out" / "efface.json").read_text())
    assert written["provenance"]["static_export"] == {"delta": delta.id, "hook": "spm", "config": hook["config"]}
    assert "hook" not in written["provenance"]
    safe = Delta("hook", {}, {**delta.provenance, "hook": {"name": "adavd", "config": {"prompts": ["cat"]}}})
    with pytest.raises(UserError, match="'adavd' has no adapters that could be merged"):
        export(tiny_base, safe, tmp_path / "other", merge_adapters=True)


def test_words_added_to_a_tokenizer_are_kept(tiny_base: Base, tmp_path: Path) -> None:
    tiny_base.tokenizer.add_tokens(["<my-cat>"])
    export(tiny_base, None, tmp_path / "out")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer", local_files_only=True)
    assert tokenizer("a <my-cat>").input_ids == tiny_base.tokenizer("a <my-cat>").input_ids


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_who_may_read_it_is_the_umask_s_to_say(umask: int, tiny_base: Base, tmp_path: Path) -> None:
    export(tiny_base, None, tmp_path / "out")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o666 & ~umask}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o777 & ~umask}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, " has no _class_name, should name the base's scheduler, such as PNDMScheduler"),
        ({"_class_name": "MyScheduler"}, f" names the scheduler 'MyScheduler', which diffusers {VERSION} does"),
        ({"_class_name": "../PNDMScheduler"}, " names the scheduler '../PNDMScheduler', which diffusers"),
        ({"_class_name": "a/PNDMScheduler"}, " names the scheduler 'a/PNDMScheduler', which diffusers"),
        ({"_class_name": "AutoencoderKL"}, " names the scheduler 'AutoencoderKL', which diffusers"),
        ({"_class_name": "schedulers"}, " names the scheduler 'schedulers', which diffusers"),
        ({"_class_name": 3}, " names the scheduler 3, which diffusers"),
        ({"_class_name": None}, " names the scheduler None, which diffusers"),
        ({"_class_name": ["PNDMScheduler"]}, " names the scheduler ['PNDMScheduler'], which diffusers"),
        ({"_class_name": "PNDMScheduler", "beta_schedule": "wavy"}, ": no PNDMScheduler can be made of it (wavy"),
        ({"_class_name": "PNDMScheduler", "num_train_timesteps": "many"}, ": no PNDMScheduler can be made of it ("),
    ],
    ids=str,
)  # fmt: skip
def test_an_odd_scheduler_is_answered_in_a_sentence_and_nothing_is_written(
    config: dict[str, Any], sentence: str, tiny_base: Base, tmp_path: Path
) -> None:
    tiny_base.scheduler_config = config
    with pytest.raises(UserError) as message:
        export(tiny_base, None, tmp_path / "out")
    assert str(message.value).startswith(f"base 'model': scheduler_config.json{sentence}")
    assert "\n" not in str(message.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["/dev/null/out", "/proc/none/out", f"/tmp/{'x' * 300}"])
def test_a_folder_that_cannot_be_is_answered_in_a_sentence(folder: str, tiny_base: Base) -> None:
    with pytest.raises(UserError, match=f"{folder}: cannot be written"):
        export(tiny_base, None, folder)


def test_it_may_be_in_the_home_folder(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    export(tiny_base, None, "~/out")
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.parametrize("there", ["a file", "a folder", "a link to nothing"])
def test_an_export_never_writes_over_something(there: str, tiny_base: Base, tmp_path: Path) -> None:
    make: dict[str, Callable[[Path], object]] = {
        "a file": Path.touch,
        "a folder": Path.mkdir,
        "a link to nothing": lambda path: path.symlink_to("nowhere"),
    }
    make[there](tmp_path / "out")
    with pytest.raises(UserError, match="out: exists already; name a new folder"):
        export(tiny_base, None, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
