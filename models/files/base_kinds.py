"""Which kinds of models can be a base: those that make images from text alone, with one CLIP text encoder.

Every other kind is refused by what it is, from its configs and the names of its tensors, before a weight is read and
without torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.config_files import shown
from efface.errors import UserError
from efface.models.files.component_configs import read_json
from efface.models.files.tensor_names import is_of_adapter, unwrapped

WANTED = "efface edits models that make images from text alone with one CLIP text encoder, Stable Diffusion 1.x or 2.x"
MERGE = (
    "merge it into its base with diffusers (load_lora_weights, fuse_lora, unload_lora_weights, save_pretrained) "
    "and name that folder"
)
EXPORTED = "which holds no weights that can be edited; name the model that it was exported from"
FLAX = (
    "and Flax weights are not read; save it once more with a diffusers old enough to load it (from_pretrained with "
    "from_flax=True, save_pretrained)"
)
TASKS = {
    5: "a depth-to-image model, whose UNet also takes a depth map",
    7: "an upscaler, whose UNet also takes a small image",
    8: "an InstructPix2Pix model, whose UNet also takes the image to edit",
    9: "an inpainting model, whose UNet also takes a mask and a masked image",
}
"""By the channels that the UNet reads beyond the usual four."""
PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
RUN_SIGN = "run.json"
"""A file that a run folder has (`cluster/storage/paths.py`)."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that have no say in what it makes from text."""
TRICKS = (
    *("auto_map", "trust_remote_code", "custom_pipelines", "attn_implementation", "_attn_implementation"),
    *("experts_implementation", "fast_tokenizer_files", "vocab_file", "merges_file", "tokenizer_file"),
)
"""Keys by which a library would run code of the model's, or read files other than a base's own."""
MOST_LAYERS = 100
MOST_TIMESTEPS = 100_000
PREDICTIONS = ("epsilon", "v_prediction")

Configs = Mapping[str, tuple[Path, Mapping[str, Any]]]
"""By component: the file and what it says."""


def check_index(file: Path) -> None:
    """Raises UserError where a pipeline's `model_index.json` names parts that efface would not use as they are."""
    index = read_json(file)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str):
        raise UserError(f"{file}: _class_name is {shown(pipeline)}, should name a pipeline of diffusers")
    if pipeline.startswith("Flax"):
        raise UserError(f"{file}: is a {shown(pipeline)}, {FLAX}")
    if pipeline.startswith(("Onnx", "ORT", "OV")):
        raise UserError(f"{file}: is a {shown(pipeline)}, {EXPORTED}")
    if "XL" in pipeline or _class_of(index, "text_encoder_2"):
        raise UserError(f"{file}: is a {shown(pipeline)}, which has two text encoders; {WANTED}")
    parts = [key for key, value in index.items() if isinstance(value, list) and key not in UNUSED]
    for part in parts:
        found = _class_of(index, part)
        if found and part != "scheduler" and found not in PARTS.get(part, ()):
            raise UserError(f"{file}: is a {shown(pipeline)}, whose {shown(part)} is a {found}; {WANTED}")


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """The class that an index names for a part, with its library if that is a stranger's; None where it has none."""
    value = index.get(part)
    if not isinstance(value, list) or value == [None, None]:
        return None
    known = len(value) == 2 and value[0] in ("diffusers", "transformers") and isinstance(value[1], str)
    return value[1] if known and value[1].isidentifier() else shown(value)


def check_configs(configs: Configs) -> None:
    """Raises UserError where the configs shape another kind of model than efface can edit."""
    for file, config in configs.values():
        check_tricks(file, config)
        if config.get("quantization_config"):
            raise UserError(f"{file}: the weights are quantised (quantization_config); name the model before that")
    _check_unet(*configs["unet"])
    _check_vae(*configs["vae"])
    _check_text_encoder(*configs["text_encoder"])
    _check_scheduler(*configs["scheduler"])
    _check_that_they_fit(configs)


def check_tricks(file: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError where a config names code, or files, that are no part of a base."""
    for key in TRICKS:
        if config.get(key):
            raise UserError(f"{file}: has '{key}', which a base may not have; take it out if you trust the rest")


def _check_unet(file: Path, config: Mapping[str, Any]) -> None:
    _check_class(file, config, "UNet2DConditionModel")
    channels = config.get("in_channels", 4)
    if isinstance(channels, int) and channels in TASKS:
        raise UserError(f"{file}: in_channels {channels} is {TASKS[channels]}; {WANTED}")
    if config.get("addition_embed_type") == "text_time":
        raise UserError(
            f"{file}: addition_embed_type 'text_time' is that of Stable Diffusion XL, with two text encoders; {WANTED}"
        )
    for key, what in (
        ("addition_embed_type", "conditions other than text"),
        ("class_embed_type", "classes beside text"),
        ("num_class_embeds", "classes beside text"),
        ("encoder_hid_dim_type", "conditions other than text"),
        ("time_cond_proj_dim", "the guidance scale as an input (distilled, as LCM is)"),
    ):
        if config.get(key) is not None:
            raise UserError(f"{file}: {key} {shown(config[key])} is for {what}; {WANTED}")
    size = config.get("sample_size", 64)
    if size is not None and (type(size) is not int or size < 1):
        raise UserError(f"{file}: sample_size is {shown(size)}, should be one number of latents; {WANTED}")
    _check_layers(file, config, ("layers_per_block", "transformer_layers_per_block"))


def _check_vae(file: Path, config: Mapping[str, Any]) -> None:
    _check_class(file, config, "AutoencoderKL")
    _check_layers(file, config, ("layers_per_block",))
    scale = config.get("scaling_factor", 0.18215)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise UserError(f"{file}: scaling_factor is {shown(scale)}, should be a number above 0")


def _check_text_encoder(file: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise UserError(f"{file}: model_type is {shown(kind)}, should be 'clip_text_model'; {WANTED}")
    if config.get("use_attention_mask"):
        raise UserError(f"{file}: use_attention_mask is set, and CLIP's text encoder reads the padding too; {WANTED}")
    _check_layers(file, config, ("num_hidden_layers",))


def _check_scheduler(file: Path, config: Mapping[str, Any]) -> None:
    name = config.get("_class_name")
    if not isinstance(name, str) or not name.endswith("Scheduler"):
        said = "has no _class_name" if name is None else f"_class_name is {shown(name)}"
        raise UserError(f"{file}: {said}, should name a scheduler of diffusers such as 'PNDMScheduler'")
    prediction = config.get("prediction_type", "epsilon")
    if "FlowMatch" in name or prediction not in PREDICTIONS:
        what = "flow matching" if "FlowMatch" in name else shown(prediction)
        raise UserError(f"{file}: the model predicts {what}, should be one of {', '.join(PREDICTIONS)}; {WANTED}")
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= MOST_TIMESTEPS:
        raise UserError(f"{file}: num_train_timesteps is {shown(steps)}, should be 1 to {MOST_TIMESTEPS}")


def _check_that_they_fit(configs: Configs) -> None:
    unet_file, unet = configs["unet"]
    latent = configs["vae"][1].get("latent_channels", 4)
    for key in ("in_channels", "out_channels"):
        if unet.get(key, 4) != latent:
            raise UserError(f"{unet_file}: {key} is {shown(unet.get(key))}, and the VAE's latents have {shown(latent)}")
    width, wanted = configs["text_encoder"][1].get("hidden_size", 512), unet.get("cross_attention_dim", 1280)
    if any(one != width for one in (wanted if isinstance(wanted, list) else [wanted])):
        widths = f"cross_attention_dim is {shown(wanted)}, and the text encoder's hidden_size {shown(width)}"
        raise UserError(f"{unet_file}: {widths}; is there a second text encoder? {WANTED}")


def _check_class(file: Path, config: Mapping[str, Any], wanted: str) -> None:
    name = config.get("_class_name", wanted)
    if name != wanted:
        raise UserError(f"{file}: _class_name is {shown(name)}, should be '{wanted}'; {WANTED}")


def _check_layers(file: Path, config: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Before a model of so many layers is built, on no device even."""
    for key in keys:
        counts = config.get(key)
        while isinstance(counts, list) and any(isinstance(count, list) for count in counts):
            counts = [inner for count in counts for inner in (count if isinstance(count, list) else [count])]
        for count in counts if isinstance(counts, list) else [counts]:
            if count is not None and (type(count) is not int or not 0 <= count <= MOST_LAYERS):
                raise UserError(f"{file}: {key} is {shown(config[key])}, should be at most {MOST_LAYERS}")
    longest = max((len(value) for value in config.values() if isinstance(value, list)), default=0)
    if longest > MOST_LAYERS:
        raise UserError(f"{file}: lists {longest} values, should be at most {MOST_LAYERS}")


def check_folder(folder: Path) -> None:
    """Raises UserError where a folder is no pipeline of diffusers' at all."""
    if (folder / "model_index.json").is_file():
        check_index(folder / "model_index.json")
    if (folder / "text_encoder_2").is_dir():
        raise UserError(f"{folder}: has two text encoders, as Stable Diffusion XL; {WANTED}")
    if (folder / "unet").is_dir():
        return
    if (folder / "adapter_config.json").is_file() or any(folder.glob("*lora*.safetensors")):
        raise UserError(f"{folder}: is a LoRA, not a base; {MERGE}")
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        what = config.get("_class_name") or config.get("model_type") or "model"
        raise UserError(
            f"{folder}: is a {shown(what)} alone; put it where it belongs in a copy of the base's folder and name that"
        )
    if any(folder.glob("learned_embeds*")):
        raise UserError(f"{folder}: is a textual inversion, not a base; {TEXTUAL_INVERSION}")
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".ckpt"))
    if files:
        raise UserError(
            f"{folder}: is no diffusers folder; name the file in it, {shown(files[0])}, if that is the base"
        )
    if (folder / RUN_SIGN).is_file():
        raise UserError(f"{folder}: is the folder of a run and no base; `efface.score` and `efface score` read it")
    raise UserError(f"{folder}: has no folder 'unet', so it is no diffusers folder of a Stable Diffusion")


TEXTUAL_INVERSION = (
    "load it into its base with diffusers (load_textual_inversion, save_pretrained) and name that folder"
)
# What tensors are called in the one file of a model of another kind.
ELSEWHERE = {
    "conditioner.embedders.": f"is a Stable Diffusion XL, with two text encoders; {WANTED}",
    "model.diffusion_model.label_emb.": f"takes more than text, as Stable Diffusion XL does; {WANTED}",
    "model.diffusion_model.joint_blocks.": f"is a Stable Diffusion 3; {WANTED}",
    "model.diffusion_model.double_blocks.": f"is a FLUX; {WANTED}",
    "double_blocks.": f"is a FLUX; {WANTED}",
    "control_model.": f"is a ControlNet; {WANTED}",
    "emb_params": f"is a textual inversion, not a base; {TEXTUAL_INVERSION}",
}
ALONE = {
    "down_blocks.": "a UNet",
    "input_blocks.": "a UNet",
    "encoder.down": "a VAE",
    "text_model.": "a text encoder",
    "encoder.layers.": "a text encoder",
}
IN_ONE_FILE = {
    "model.diffusion_model.": "UNet",
    "first_stage_model.": "VAE",
    "cond_stage_model.": "text encoder",
}
"""How CompVis' files begin the names of each part's tensors."""


def check_tensors(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError where the tensors of one file are not those of a text-to-image model in CompVis' layout."""
    shapes = {unwrapped(name): shape for name, shape in shapes.items()}
    adapters = [name for name in shapes if is_of_adapter(name)]
    if adapters:
        raise UserError(f"{file}: is a LoRA, or has one attached ({shown(adapters[0])}); {MERGE}")
    for start, kind in ELSEWHERE.items():
        if any(name.startswith(start) for name in shapes):
            raise UserError(f"{file}: {kind}")
    conv_in = shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0, 4))
    if len(conv_in) > 1 and conv_in[1] in TASKS:
        raise UserError(f"{file}: is {TASKS[conv_in[1]]}; {WANTED}")
    missing = [part for start, part in IN_ONE_FILE.items() if not any(name.startswith(start) for name in shapes)]
    if len(missing) == len(IN_ONE_FILE):
        alone = next((what for start, what in ALONE.items() if any(name.startswith(start) for name in shapes)), None)
        if alone:
            raise UserError(f"{file}: is {alone} alone; name a diffusers folder of the whole model with it")
        raise UserError(f"{file}: holds no tensor by a name of Stable Diffusion's, so it is no base; {WANTED}")
    if missing:
        raise UserError(f"{file}: holds no {' and no '.join(missing)}; name a file of the whole model")
