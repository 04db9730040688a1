"""Kinds of models that are no base: each is refused when it is read, by what it is, with advice that helps."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.errors import UserError
from efface.models.base import base_id, load_base, read_base
from efface.models.noise_scheduler import make_scheduler


@dataclass
class Hub:
    """A repository of the hub, and what of it was fetched."""

    there: Path
    here: Path

    def snapshot_download(self, repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only and not self.here.is_dir():
            raise FileNotFoundError(repository)
        for file in () if local_files_only else self.there.rglob("*"):
            name = file.relative_to(self.there)
            if file.is_file() and any(name.match(pattern) for pattern in allow_patterns):
                (self.here / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.here / name)
        return str(self.here)

    def fetched(self) -> set[str]:
        return {file.relative_to(self.here).as_posix() for file in self.here.rglob("*") if file.is_file()}


@pytest.fixture
def folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "copy"))


def change(file: Path, **settings: Any) -> None:
    config = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def refused(base: Path, match: str) -> None:
    """When the identity is computed as when the model is loaded; in one line."""
    for read in (lambda: base_id(read_base(base)), lambda: load_base(base)):
        with pytest.raises(UserError, match=match) as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline', which has two text encoders"),
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "which has two text encoders"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "whose 'text_encoder' is a T5EncoderModel"),
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "whose 'transformer' is a FluxTransformer2DModel"),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, "whose 'controlnet' is a ControlNetModel"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "whose 'vae' is a AutoencoderTiny"),
        ({"unet": ["my_unet", "UNet2DConditionModel"]}, r"whose 'unet' is a \['my_unet', 'UNet2DConditionModel'\]"),
        ({"unet": ["diffusers", "../evil"]}, r"whose 'unet' is a \['diffusers', '\.\./evil'\]"),
        ({"_class_name": ["pipeline", "MyPipeline"]}, r"_class_name is \['pipeline', 'MyPipeline'\], should name"),
        ({"_class_name": ...}, "_class_name is None, should name a pipeline of diffusers"),
        ({"_class_name": "FlaxStableDiffusionPipeline"}, "Flax weights are not read; .*from_flax=True"),
        ({"_class_name": "OnnxStableDiffusionPipeline"}, "no weights that can be edited; name the model that it was"),
    ],
)
def test_another_pipeline_is_refused_by_its_index(folder: Path, settings: dict[str, Any], match: str) -> None:
    change(folder / "model_index.json", **settings)
    refused(folder, rf"model_index\.json: .*{match}")


@pytest.mark.parametrize(
    "settings",
    [
        {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]},
        {"feature_extractor": ["transformers", "CLIPImageProcessor"], "image_encoder": [None, None]},
        {"_class_name": "StableDiffusionImg2ImgPipeline"},
        {"tokenizer": ["transformers", "CLIPTokenizerFast"]},
    ],
)
def test_what_has_no_say_in_an_image_does_not_matter(
    folder: Path, tiny_base_folder: Path, settings: dict[str, Any]
) -> None:
    change(folder / "model_index.json", **settings)
    assert load_base(folder).fingerprint == base_id(read_base(tiny_base_folder))


def test_a_folder_without_an_index_is_recognised_by_its_parts(folder: Path, tiny_base_folder: Path) -> None:
    (folder / "model_index.json").unlink()
    assert load_base(folder).fingerprint == base_id(read_base(tiny_base_folder))


@pytest.mark.parametrize(
    ("component", "settings", "match"),
    [
        ("unet", {"in_channels": 9}, "in_channels 9 is an inpainting model, whose UNet also takes a mask"),
        ("unet", {"in_channels": 8}, "InstructPix2Pix"),
        ("unet", {"in_channels": 5}, "depth"),
        ("unet", {"in_channels": 7}, "upscaler"),
        ("unet", {"in_channels": 16}, "in_channels is 16, and the VAE's latents have 4"),
        ("unet", {"in_channels": 3}, "in_channels is 3, and the VAE's latents have 4"),
        ("unet", {"out_channels": 8}, "out_channels is 8, and the VAE's latents have 4"),
        ("unet", {"addition_embed_type": "text_time"}, "Stable Diffusion XL, with two text encoders"),
        ("unet", {"time_cond_proj_dim": 256}, "the guidance scale as an input"),
        ("unet", {"class_embed_type": "timestep"}, "classes beside text"),
        ("unet", {"encoder_hid_dim_type": "image_proj"}, "conditions other than text"),
        ("unet", {"cross_attention_dim": 32}, "cross_attention_dim is 32, and the text encoder's hidden_size 16"),
        ("unet", {"cross_attention_dim": [16, 32]}, r"cross_attention_dim is \[16, 32\]"),
        ("unet", {"_class_name": "UNetMotionModel"}, "_class_name is 'UNetMotionModel', should be 'UNet2DCond"),
        ("unet", {"_class_name": "os.system"}, "_class_name is 'os.system', should be 'UNet2DConditionModel'"),
        ("unet", {"auto_map": {"AutoModel": "evil.Unet"}}, "has 'auto_map', which a base may not have"),
        ("unet", {"quantization_config": {"load_in_8bit": True}}, "the weights are quantised"),
        ("unet", {"layers_per_block": 10**9}, "layers_per_block is 1000000000, should be at most 100"),
        ("unet", {"transformer_layers_per_block": [[1, 10**9], 1]}, "transformer_layers_per_block"),
        ("unet", {"block_out_channels": [16] * 10**5}, "lists 100000 values"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "should be 'AutoencoderKL'"),
        ("vae", {"scaling_factor": 0}, "scaling_factor is 0, should be a number above 0"),
        ("vae", {"scaling_factor": "big"}, "scaling_factor is 'big'"),
        ("text_encoder", {"model_type": "t5"}, "model_type is 't5', should be 'clip_text_model'"),
        ("text_encoder", {"use_attention_mask": True}, "use_attention_mask is set"),
        ("text_encoder", {"attn_implementation": "somebody/kernel"}, "has 'attn_implementation'"),
        ("text_encoder", {"trust_remote_code": True}, "has 'trust_remote_code'"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("scheduler", {"_class_name": ...}, "has no _class_name, should name a scheduler .* such as 'PNDMScheduler'"),
        ("scheduler", {"_class_name": "os.system"}, "_class_name is 'os.system', should name a scheduler"),
        ("scheduler", {"_class_name": "PNDMSchedulerOfTomorrow"}, "should name a scheduler of diffusers"),
        ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "the model predicts flow matching"),
        ("scheduler", {"prediction_type": "sample"}, "predicts 'sample', should be one of epsilon, v_prediction"),
        ("scheduler", {"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000, should be 1 to"),
    ],
)
def test_another_kind_is_refused_by_its_configs(
    folder: Path, component: str, settings: dict[str, Any], match: str
) -> None:
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    change(folder / component / name, **settings)
    refused(folder, rf"{component}/{name}: .*{match}")


@pytest.mark.parametrize(
    ("component", "settings", "match"),
    [
        ("scheduler", {"_class_name": "PNDM2Scheduler"}, "has no 'PNDM2Scheduler': did you mean 'PNDMScheduler'"),
        ("scheduler", {"beta_schedule": "steep"}, "does not describe a PNDMScheduler"),
        ("scheduler", {"timestep_spacing": "evil"}, "does not describe a PNDMScheduler"),
        ("scheduler", {"num_train_timesteps": 10}, "does not describe a PNDMScheduler"),
        ("scheduler", {"beta_start": 5}, "its alphas are not between 0 and 1"),
        ("scheduler", {"beta_start": "nan"}, "does not describe a PNDMScheduler"),
        ("scheduler", {"trained_betas": [0.1, 0.2]}, "2 betas for 1000 timesteps"),
        ("scheduler", {"trained_betas": [1, 2]}, "does not describe a PNDMScheduler"),
        ("scheduler", {"steps_offset": 10**9}, "does not describe a PNDMScheduler"),
        ("unet", {"sample_size": [64, 32]}, r"sample_size is \[64, 32\], should be one number"),
        ("unet", {"block_out_channels": "wide"}, "does not describe a UNet2DConditionModel"),
        ("vae", {"act_fn": "no such function"}, "does not describe a AutoencoderKL"),
        ("text_encoder", {"hidden_act": "no such function"}, "does not describe a CLIPTextModel"),
    ],
)
def test_what_no_library_can_build_is_reported_before_any_training(
    folder: Path, component: str, settings: dict[str, Any], match: str
) -> None:
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    change(folder / component / name, **settings)
    with pytest.raises(UserError, match=match) as caught:
        load_base(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_no_base(folder: Path) -> None:
    file = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] * float("nan")}, file)
    with pytest.raises(UserError, match=f"{name}' holds numbers that are not finite"):
        load_base(folder)


def test_a_schedule_that_ends_in_pure_noise_is_that_of_v_prediction(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    change(file, _class_name="DDIMScheduler", rescale_betas_zero_snr=True)
    with pytest.raises(UserError, match="its alphas are not between 0 and 1"):
        load_base(folder)
    change(file, prediction_type="v_prediction")
    load_base(folder)


def test_a_scheduler_that_cannot_take_the_steps_says_so() -> None:
    with pytest.raises(UserError, match="scheduler 'ddim': cannot take 20 steps with this base"):
        make_scheduler("ddim", {"num_train_timesteps": 10}, 20)


def test_a_second_text_encoder_is_seen_without_an_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_2")
    refused(folder, "has two text encoders")


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("adapter_config.json", "{}", "is a LoRA, not a base; merge it into its base with diffusers"),
        ("pytorch_lora_weights.safetensors", "", "is a LoRA, not a base"),
        ("config.json", '{"_class_name": "UNet2DConditionModel"}', "is a 'UNet2DConditionModel' alone; put it where"),
        ("learned_embeds.safetensors", "", "is a textual inversion, not a base; .*load_textual_inversion"),
        ("model.safetensors", "", r"name the file in it, 'model\.safetensors'"),
        ("README.md", "", "has no folder 'unet'"),
    ],
)
def test_a_folder_of_something_else_is_refused_by_what_it_is(tmp_path: Path, file: str, text: str, match: str) -> None:
    (tmp_path / file).write_text(text)
    refused(tmp_path, match)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["lora_unet_down_blocks_0.lora_down.weight"], "is a LoRA, .*fuse_lora"),
        (["unet.down_blocks.0.attn2.to_q.lora_A.weight"], "is a LoRA"),
        (["conditioner.embedders.0.x", "model.diffusion_model.x"], "is a Stable Diffusion XL, with two text encoders"),
        (["model.diffusion_model.joint_blocks.0.x"], "is a Stable Diffusion 3"),
        (["model.diffusion_model.double_blocks.0.x"], "is a FLUX"),
        (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
        (["emb_params"], "is a textual inversion"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "is a UNet alone; name a diffusers folder"),
        (["encoder.down.0.block.0.conv1.weight"], "is a VAE alone"),
        (["text_model.final_layer_norm.bias"], "is a text encoder alone"),
        (["layers.0.weight"], "no tensor by a name of Stable Diffusion's"),
        (["model.diffusion_model.x"], "holds no VAE and no text encoder; name a file of the whole model"),
        (["model.diffusion_model.x", "cond_stage_model.x"], "holds no VAE; name"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_one_file_of_something_else_is_refused_by_what_it_is(
    tmp_path: Path, names: list[str], match: str, suffix: str
) -> None:
    tensors = {name: torch.zeros(1) for name in names}
    file = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, file)
        refused(file, match)
    else:
        torch.save({"state_dict": tensors}, file)
        with pytest.raises(UserError, match=match):
            load_base(file)


def test_one_file_of_an_inpainting_model_is_not_sent_to_another_architecture(tmp_path: Path) -> None:
    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x", "cond_stage_model.x")
    save_file({name: torch.zeros(8, 9, 3, 3) for name in names}, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "is an inpainting model, (?!.*architecture)")


def test_one_file_of_another_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pth").touch()
    (tmp_path / "base.yaml").write_text(f"name: x\nsource: {tmp_path / 'model.pth'}\n")
    refused(tmp_path / "base.yaml", r"should be a \.safetensors or \.ckpt file")


def test_the_unet_of_an_inpainting_model_is_no_way_around(folder: Path) -> None:
    """Its config says four channels."""
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"conv_in.weight": torch.zeros(16, 9, 3, 3)}, file)
    with pytest.raises(UserError, match=r"'conv_in\.weight' as 16 x 9 x 3 x 3 instead of 16 x 4 x 3 x 3"):
        load_base(folder)


@pytest.fixture
def hub(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(Path(shutil.copytree(tiny_base_folder, tmp_path / "there")), tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
    return made


def test_a_model_of_the_hub_is_refused_before_its_weights_are_fetched(hub: Hub) -> None:
    change(hub.there / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(UserError, match="which has two text encoders"):
        base_id(read_base("somebody/xl"))
    assert hub.fetched() and not any(name.endswith(".safetensors") for name in hub.fetched())


def test_a_model_of_the_hub_is_fetched_whole(hub: Hub, tiny_base_folder: Path) -> None:
    assert base_id(read_base("somebody/good")) == base_id(read_base(tiny_base_folder))
    assert hub.fetched() == {file.relative_to(hub.there).as_posix() for file in hub.there.rglob("*") if file.is_file()}
