"""One checkpoint file in CompVis' layout, written here by hand, loads without network and without running code."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from efface.errors import UserError
from efface.models.base import base_id, load_base, read_base

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
PLAIN = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def ldm_unet_name(name: str) -> str:
    """A diffusers name in CompVis' counting: two blocks and a resampling a level on the way down, three going up."""
    block = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    if block:
        way, level, kind, index, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
        if kind == "downsamplers":
            return f"input_blocks.{3 * (level + 1)}.0.op{rest.removeprefix('conv')}"
        if kind == "upsamplers":
            return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.{rest}"
        place = f"input_blocks.{3 * level + 1 + index}" if way == "down" else f"output_blocks.{3 * level + index}"
        place += ".0" if kind == "resnets" else ".1"
    else:
        start = next(start for start in PLAIN if name.startswith(f"{start}."))
        place, rest = PLAIN[start], name.removeprefix(f"{start}.")
    part, _, end = rest.rpartition(".")
    return f"{place}.{RESNET.get(part, part)}.{end}".replace("..", ".")


def ldm_vae_name(name: str) -> str:
    """A diffusers name in CompVis' VAE: `down.1.block.0`, and the way up counted from the finest level."""
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    attention = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
    name = re.sub(r"mid_block\.attentions\.0\.(to_out\.0|\w+)", lambda m: f"mid.attn_1.{attention[m[1]]}", name)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, write_tokenizer: Callable[[Path], int]
) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """A folder of configs, the checkpoint's tensors, and what they are by full name."""
    configs = tmp_path_factory.mktemp("configs")
    vocabulary = write_tokenizer(configs / "tokenizer")
    shipped = Path(load_base.__code__.co_filename).parents[1] / "configs" / "bases" / "sd-v1-4"
    shapes = {
        "unet": {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "cross_attention_dim": 8},
        "vae": {"block_out_channels": [4, 4, 8, 8], "norm_num_groups": 4, "sample_size": 64},
    }
    for part, changes in {**shapes, "scheduler": {}}.items():
        (configs / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        config = json.loads((shipped / part / name).read_text()) | changes
        (configs / part / name).write_text(json.dumps(config))
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"vocab_size": vocabulary, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    text_config = CLIPTextConfig(**text, **special, projection_dim=8)
    text_config.save_pretrained(configs / "text_encoder")
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(configs / "unet")).state_dict()
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs / "vae")).state_dict()
    text_encoder = {k.removeprefix("text_model."): v for k, v in CLIPTextModel(text_config).state_dict().items()}
    text_encoder = {k: v for k, v in text_encoder.items() if "position_ids" not in k}
    checkpoint = {f"model.diffusion_model.{ldm_unet_name(k)}": v for k, v in unet.items()}
    for name, value in vae.items():
        square = "attentions" in name and value.ndim == 2
        checkpoint[f"first_stage_model.{ldm_vae_name(name)}"] = value[:, :, None, None] if square else value
    for name, value in text_encoder.items():
        checkpoint[f"cond_stage_model.transformer.text_model.{name}"] = value
    checkpoint["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    checkpoint["alphas_cumprod"] = torch.ones(1000)
    full = {
        f"{part}.{name}": value
        for part, tensors in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder))
        for name, value in tensors.items()
    }
    return configs, checkpoint, full


def spec(folder: Path, file: Path, configs: Path) -> Path:
    path = folder / "base.yaml"
    path.write_text(f"name: small\nsource: {file}\nimage_size: 64\narchitecture: {configs}\n")
    return path


def test_the_names_written_here_are_those_of_stable_diffusion_v1() -> None:
    """A few names as they stand in published checkpoints."""
    assert ldm_unet_name("down_blocks.2.attentions.0.proj_in.weight") == "input_blocks.7.1.proj_in.weight"
    assert ldm_unet_name("up_blocks.3.resnets.2.conv1.bias") == "output_blocks.11.0.in_layers.2.bias"
    assert ldm_unet_name("up_blocks.1.upsamplers.0.conv.weight") == "output_blocks.5.2.conv.weight"
    assert ldm_unet_name("down_blocks.0.downsamplers.0.conv.weight") == "input_blocks.3.0.op.weight"
    assert ldm_vae_name("decoder.up_blocks.0.resnets.1.conv1.weight") == "decoder.up.3.block.1.conv1.weight"
    assert ldm_vae_name("encoder.mid_block.attentions.0.to_out.0.bias") == "encoder.mid.attn_1.proj_out.bias"


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_loads_to_the_same_tensors(
    suffix: str, small: tuple[Path, dict[str, Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    configs, checkpoint, full = small
    file = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": checkpoint, "global_step": 470000}, file)
    else:
        save_file(checkpoint, file)
    base = load_base(spec(tmp_path, file, configs))
    tensors = base.tensors()
    assert tensors.keys() == full.keys()
    assert all(torch.equal(tensors[name], full[name]) for name in full)
    assert base.scheduler_config["_class_name"] == "PNDMScheduler"
    assert len(base.fingerprint) == 64


def test_an_untouched_path_means_a_file_of_v1_4_size(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert read_base(tmp_path / "model.safetensors").image_size == 512


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, ("pwned",)  # type: ignore[return-value]


def test_code_in_a_pickle_is_refused_and_not_run(
    small: tuple[Path, dict[str, Tensor], dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": small[1], "callback": Bomb()}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=r"^.*model\.ckpt: holds more than tensors, which could run code when read.*$"):
        load_base(spec(tmp_path, tmp_path / "model.ckpt", small[0]))
    assert not (tmp_path / "pwned").exists()


def test_what_the_trainer_left_in_a_ckpt_does_not_matter(
    small: tuple[Path, dict[str, Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for package in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, package, ModuleType(package))
        patch.setitem(sys.modules, name, module)
        left = {module.ModelCheckpoint: {"best_model_path": ""}}
        torch.save({"state_dict": small[1], "callbacks": left}, tmp_path / "model.ckpt")
    base = load_base(spec(tmp_path, tmp_path / "model.ckpt", small[0]))
    assert torch.equal(base.unet.conv_in.weight, small[2]["unet.conv_in.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 cut"])
def test_a_broken_file_is_a_users_mistake(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"model{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=rf"model\{suffix}: not a whole"):
        load_base(tmp_path / f"model{suffix}")


def test_another_architecture_is_a_users_mistake(
    small: tuple[Path, dict[str, Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    save_file(small[1], tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not fit the architecture"):
        load_base(tmp_path / "model.safetensors")


def test_a_checkpoint_without_a_tensor_is_a_users_mistake(
    small: tuple[Path, dict[str, Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    configs, checkpoint, _ = small
    for gone in ("model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.bias"):
        save_file({name: value for name, value in checkpoint.items() if name != gone}, tmp_path / "m.safetensors")
        with pytest.raises(UserError, match=r"m\.safetensors: "):
            load_base(spec(tmp_path, tmp_path / "m.safetensors", configs))


def test_an_unknown_architecture_is_a_users_mistake(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="unknown architecture 'sd-v1-5': did you mean 'sd-v1-4'"):
        load_base(spec(tmp_path, tmp_path / "m.safetensors", Path("sd-v1-5")))


Small = tuple[Path, dict[str, Tensor], dict[str, Tensor]]


def loads_as(full: dict[str, Tensor], folder: Path, checkpoint: dict[str, Tensor], configs: Path) -> bool:
    save_file(checkpoint, folder / "model.safetensors")
    tensors = load_base(spec(folder, folder / "model.safetensors", configs)).tensors()
    return tensors.keys() == full.keys() and all(torch.equal(tensors[name], full[name]) for name in full)


def refused(folder: Path, checkpoint: dict[str, Tensor], configs: Path) -> str:
    save_file(checkpoint, folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_base(spec(folder, folder / "model.safetensors", configs))
    message = str(caught.value)
    assert "\n" not in message
    return message


def averages(checkpoint: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    """Averages of the UNet's weights, each `by` more than its weight, by CompVis' names: without dots."""
    unet = {name: tensor for name, tensor in checkpoint.items() if name.startswith("model.diffusion_model.")}
    return {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor + by for name, tensor in unet.items()}


def test_of_weights_and_their_averages_the_averages_are_taken(small: Small, tmp_path: Path) -> None:
    """As in sd-v1-4-full-ema.ckpt, of which the hub has the averages."""
    configs, checkpoint, full = small
    both = checkpoint | averages(checkpoint, by=1.0) | {"model_ema.num_updates": torch.tensor(7)}
    assert "model_ema.diffusion_modelinput_blocks00weight" in both
    expected = {name: tensor + 1.0 if name.startswith("unet.") else tensor for name, tensor in full.items()}
    assert loads_as(expected, tmp_path, both, configs)


def test_averages_of_some_weights_alone_are_refused(small: Small, tmp_path: Path) -> None:
    configs, checkpoint, _ = small
    some = averages(checkpoint, by=1.0)
    some.pop("model_ema.diffusion_modelout2bias")
    message = refused(tmp_path, checkpoint | some, configs)
    assert re.search(r"averages \(EMA\) of only \d+ of .* without 'model_ema\.diffusion_modelout2bias'", message)


def test_a_text_encoder_under_older_names_is_read(small: Small, tmp_path: Path) -> None:
    configs, checkpoint, full = small
    older = {name.replace(".transformer.text_model.", ".transformer."): value for name, value in checkpoint.items()}
    assert "cond_stage_model.transformer.final_layer_norm.bias" in older
    assert loads_as(full, tmp_path, older, configs)


OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def test_a_text_encoder_of_stable_diffusion_2_is_read(small: Small, tmp_path: Path) -> None:
    """OpenCLIP has queries, keys and values in one matrix, a projection that is not used, and a temperature."""
    configs, checkpoint, full = small
    theirs = {name: value for name, value in checkpoint.items() if not name.startswith("cond_stage_model.")}
    own = {name.removeprefix("text_encoder."): value for name, value in full.items() if name.startswith("text_enc")}
    for layer in ("encoder.layers.0.self_attn.", "encoder.layers.1.self_attn."):
        for kind in ("weight", "bias"):
            joined = torch.cat([own.pop(f"{layer}{part}_proj.{kind}") for part in "qkv"])
            theirs[f"cond_stage_model.model.transformer.resblocks.{layer[15]}.attn.in_proj_{kind}"] = joined
    for name, value in own.items():
        for ours, others in OPEN_CLIP.items():
            name = name.replace(ours, others)
        theirs[f"cond_stage_model.model.{name}"] = value
    theirs["cond_stage_model.model.text_projection"] = torch.zeros(8, 8)
    theirs["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    assert loads_as(full, tmp_path, theirs, configs)


def test_what_a_wrapper_put_before_all_names_is_taken_off(small: Small, tmp_path: Path) -> None:
    configs, checkpoint, full = small
    assert loads_as(full, tmp_path, {f"module.{name}": value for name, value in checkpoint.items()}, configs)


def test_the_loss_of_an_autoencoder_does_not_matter(small: Small, tmp_path: Path) -> None:
    configs, checkpoint, full = small
    left = {"first_stage_model.loss.logvar": torch.zeros(1)}
    assert loads_as(full, tmp_path, checkpoint | left, configs)


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.extra.weight", "first_stage_model.extra.bias", "cond_stage_model.transformer.extra"]
)
def test_a_tensor_too_many_is_named(small: Small, tmp_path: Path, name: str) -> None:
    configs, checkpoint, _ = small
    message = refused(tmp_path, checkpoint | {name: torch.zeros(3)}, configs)
    assert "does not fit the architecture" in message and name.rpartition("transformer.")[2] in message


@pytest.mark.parametrize(
    "gone",
    [
        "model.diffusion_model.out.2.weight",
        "model.diffusion_model.input_blocks.0.0.bias",
        "first_stage_model.quant_conv.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ],
)
def test_where_a_tensor_is_missing_another_architecture_is_no_help(small: Small, tmp_path: Path, gone: str) -> None:
    configs, checkpoint, _ = small
    message = refused(tmp_path, {name: value for name, value in checkpoint.items() if name != gone}, configs)
    assert "lacks 1 of the " in message and "architecture" not in message


def test_where_shapes_differ_another_architecture_is_advised(small: Small, tmp_path: Path) -> None:
    configs, checkpoint, _ = small
    name = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    message = refused(tmp_path, checkpoint | {name: torch.zeros(1024)}, configs)
    assert re.search(
        r"'final_layer_norm.weight' as 1024 instead of 8\); if it has another one, name the folder", message
    )


def test_one_file_under_other_configs_is_another_base(small: Small, tmp_path: Path) -> None:
    configs, checkpoint, _ = small
    save_file(checkpoint, tmp_path / "model.safetensors")
    before = base_id(read_base(spec(tmp_path, tmp_path / "model.safetensors", configs)))
    for file, key, value in (
        ("scheduler/scheduler_config.json", "prediction_type", "v_prediction"),
        ("vae/config.json", "scaling_factor", 0.5),
        ("text_encoder/config.json", "hidden_act", "gelu"),
    ):
        other = Path(shutil.copytree(configs, tmp_path / key))
        (other / file).write_text(json.dumps(json.loads((other / file).read_text()) | {key: value}))
        base = load_base(spec(tmp_path, tmp_path / "model.safetensors", other))
        assert base.fingerprint == base_id(base.spec) != before
