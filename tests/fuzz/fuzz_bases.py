"""Bases under fuzz: safetensors files, pickled checkpoints, and the configs of a diffusers folder."""

import io
import json
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from damage import damaged_bytes, damaged_text, damaged_tree
from hypothesis import strategies as st

from efface.models.base import base_id, load_base, read_base
from efface.models.files.component_files import Parts
from efface.models.files.safetensors_headers import BITS
from efface.models.files.weights_file import read_checkpoint
from efface.models.fingerprint import fingerprint
from efface.models.loading import random_components

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.tensor(2, dtype=torch.int64),
    "c": torch.zeros(0, 5, dtype=torch.float16),
    "d": torch.ones(4, dtype=torch.bfloat16),
}
WHOLE = safetensors.torch.save(TENSORS, {"format": "pt"})
HEADER_KEYS = ("__metadata__", "dtype", "shape", "data_offsets", *TENSORS)
DTYPES = (*BITS, "F4", "F8_E8M0", "C64", "f32", "", "X")


def _parts(file: Path) -> Parts:
    return Parts(configs={}, tokenizer=(), weights={"checkpoint": (file,)})


def _with_header(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@st.composite
def forged_headers(draw: st.DrawFn) -> bytes:
    """A file whose header says something else of its data than what the library wrote."""
    length = struct.unpack("<Q", WHOLE[:8])[0]
    text, data = WHOLE[8 : 8 + length], WHOLE[8 + length :]
    if draw(st.booleans()):
        return _with_header(draw(damaged_text(text.decode())).encode("utf-8", "surrogatepass"), data)
    header = json.loads(text)
    if draw(st.booleans()):
        header = draw(damaged_tree(header, HEADER_KEYS))
    else:
        for name in TENSORS:
            header[name]["dtype"] = draw(st.sampled_from((header[name]["dtype"], *DTYPES)))
    return _with_header(json.dumps(header).encode(), data)


tensors = st.one_of(damaged_bytes(WHOLE), forged_headers(), st.binary(max_size=64))


def check_tensors(drawn: bytes, folder: Path) -> bool:
    """What has a fingerprint is what the library loads; and another one unless the tensors are the same."""
    whole, file = folder / "whole.safetensors", folder / "drawn.safetensors"
    whole.write_bytes(WHOLE)
    file.write_bytes(drawn)
    found = fingerprint(_parts(file))
    loaded = safetensors.torch.load_file(file)
    same = loaded.keys() == TENSORS.keys() and all(
        value.dtype == TENSORS[name].dtype
        and value.shape == TENSORS[name].shape
        and torch.equal(value.flatten().view(torch.uint8), TENSORS[name].flatten().view(torch.uint8))
        for name, value in loaded.items()
    )
    assert (found == fingerprint(_parts(whole))) == same
    return True


class MakesAFolder:
    """Code in a pickle."""

    def __reduce__(self) -> Any:
        return Path.mkdir, (Path("pwned"),)


@cache
def checkpoints() -> tuple[bytes, ...]:
    """Pickles as trainers leave them, with a number of numpy's and with code, in torch's newer and its older format."""
    found = []
    for left in (np.float64(0.5), MakesAFolder()):
        for zipped in (True, False):
            file = io.BytesIO()
            content = {"state_dict": {"x": torch.arange(6.0), "y": torch.ones(2, 2)}, "left": left, "epoch": 3}
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            found.append(file.getvalue())
    return tuple(found)


@st.composite
def forged_pickles(draw: st.DrawFn) -> bytes:
    """An archive that is whole, around a pickle that is not."""
    whole = draw(st.sampled_from(checkpoints()[::2]))
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            content = old.read(entry.filename)
            new.writestr(entry.filename, draw(damaged_bytes(content)) if entry.filename.endswith(".pkl") else content)
    return made.getvalue()


pickles = st.one_of(*(damaged_bytes(whole) for whole in checkpoints()), forged_pickles(), st.binary(max_size=64))


def check_pickle(drawn: bytes, folder: Path) -> bool:
    """What is accepted are tensors with all their numbers, and no code was run."""
    (folder / "model.ckpt").write_bytes(drawn)
    found = read_checkpoint(folder / "model.ckpt")
    assert not Path("pwned").exists()
    for name, value in found.items():
        assert isinstance(name, str) and isinstance(value, torch.Tensor)
        value.sum()
    return True


CONFIGS: dict[str, dict[str, Any]] = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
    },
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 8,
        "block_out_channels": [8, 8],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 8,
        "norm_num_groups": 4,
    },
    "vae/config.json": {
        "block_out_channels": [4, 4],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "norm_num_groups": 4,
        "scaling_factor": 0.18215,
    },
    "text_encoder/config.json": {
        "model_type": "clip_text_model",
        "vocab_size": 4,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
    },
    "tokenizer/tokenizer_config.json": {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"},
    "tokenizer/vocab.json": {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3},
}
CONFIG_KEYS = (
    *sorted({key for config in CONFIGS.values() for key in config}),
    *("auto_map", "in_channels", "out_channels", "addition_embed_type", "time_cond_proj_dim", "trained_betas"),
    *("hidden_act", "added_tokens_decoder", "additional_special_tokens", "quantization_config"),
)
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def _write(folder: Path, configs: dict[str, str]) -> None:
    for name, text in configs.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")


@cache
def weights() -> dict[str, bytes]:
    """The weights of the small model that the configs describe."""
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), {name: json.dumps(config) for name, config in CONFIGS.items()})
        unet, vae, text_encoder = random_components(Path(folder), seed=0)
    modules = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    return {name: safetensors.torch.save(dict(module.named_parameters())) for name, module in modules.items()}


@st.composite
def damaged_configs(draw: st.DrawFn) -> dict[str, str]:
    """One config of a base, or two, changed in its values or as a text."""
    texts = {name: json.dumps(config) for name, config in CONFIGS.items()}
    for name in draw(st.lists(st.sampled_from(sorted(texts)), min_size=1, max_size=2, unique=True)):
        if draw(st.integers(0, 3)):
            texts[name] = json.dumps(draw(damaged_tree(CONFIGS[name], CONFIG_KEYS)))
        else:
            texts[name] = draw(damaged_text(texts[name])).encode("utf-8", "replace").decode()
    return texts


def check_configs(drawn: dict[str, str], folder: Path) -> bool:
    """What can be loaded has the identity that was computed before, and weights that are all the files'."""
    _write(folder, drawn)
    for component, data in weights().items():
        (folder / component / f"{WEIGHTS[component]}.safetensors").write_bytes(data)
    base = load_base(folder)
    assert base.fingerprint == base_id(read_base(folder))
    assert all(tensor.isfinite().all() for tensor in base.tensors().values())
    return True
