"""Bringing a base into memory: from a diffusers folder, from one checkpoint file, or from a seed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from efface.errors import UserError
from efface.models.base import RANDOM, RANDOM_SEED, SINGLE_FILE, Base, BaseSpec, architecture, base_id
from efface.models.model_files import DIFFUSERS_FILES, locate
from efface.models.single_file import read_checkpoint

DEFAULT_ARCHITECTURE = "sd-v1-4"

Components = tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]


def load(spec: BaseSpec, device: str | torch.device) -> Base:
    """`load_base`, for a spec already read."""
    if spec.source.startswith(RANDOM):
        configs = architecture(spec.source.removeprefix(RANDOM))
        unet, vae, text_encoder = random_components(configs, RANDOM_SEED)
    else:
        path = locate(spec.source, DIFFUSERS_FILES)
        single = path.is_file() and path.suffix in SINGLE_FILE
        configs = architecture(spec.architecture or DEFAULT_ARCHITECTURE) if single else path
        unet, vae, text_encoder = _from_single_file(path, configs) if single else _from_folder(path)
    for module in (unet, vae, text_encoder):
        module.to(device).eval().requires_grad_(False)
    return Base(
        spec=spec,
        fingerprint=base_id(spec),
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(configs),
        vae=vae,
        scheduler_config=_json(configs / "scheduler" / "scheduler_config.json"),
        device=torch.device(device),
    )


def _from_folder(folder: Path) -> Components:
    kinds = (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel))
    loaded = []
    for name, kind in kinds:
        _json(folder / name / "config.json")
        try:
            with no_progress_bars():
                component = kind.from_pretrained(
                    folder / name, use_safetensors=True, local_files_only=True, dtype=torch.float32
                )
        except Exception as error:
            raise UserError(f"{folder / name}: cannot be loaded as a {kind.__name__} ({_first_line(error)})") from None
        loaded.append(component)
    unet, vae, text_encoder = loaded
    return unet, vae, text_encoder


def _from_single_file(path: Path, configs: Path) -> Components:
    """The components of a checkpoint in CompVis' layout, shaped as `configs` says; nothing is fetched."""
    checkpoint = read_checkpoint(path)
    try:
        unet, vae = (
            kind.from_single_file(
                dict(checkpoint),
                config=str(configs),
                subfolder=name,
                local_files_only=True,
                dtype=torch.float32,
            )
            for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
        )
        text_encoder = create_diffusers_clip_model_from_ldm(
            CLIPTextModel,
            dict(checkpoint),
            subfolder="text_encoder",
            config=str(configs),
            torch_dtype=torch.float32,
            local_files_only=True,
        )
    except Exception as error:
        raise UserError(
            f"{path}: does not fit the architecture in {configs} ({_first_line(error)}); "
            "name another one as 'architecture' in the base's YAML"
        ) from None
    for name, module in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        missing = [key for key, tensor in module.state_dict().items() if tensor.is_meta]
        if missing:
            raise UserError(f"{path}: lacks {len(missing)} tensors of the {name}, such as '{missing[0]}'")
    return unet, vae, text_encoder


def empty_components(configs: Path) -> Components:
    """The components as `configs` shapes them, on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(_json(configs / "unet" / "config.json"))
        vae = AutoencoderKL.from_config(_json(configs / "vae" / "config.json"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(_json(configs / "text_encoder" / "config.json")))
    return unet, vae, text_encoder


def random_components(configs: Path, seed: int) -> Components:
    """The components with seeded random weights: normal with deviation 0.02, norms at one, biases at zero."""
    generator = torch.Generator().manual_seed(seed)
    components = empty_components(configs)
    for component in components:
        component.to_empty(device="cpu")
        with torch.no_grad():
            for owner in component.modules():
                norm = isinstance(owner, nn.GroupNorm | nn.LayerNorm)
                for name, parameter in owner.named_parameters(recurse=False):
                    if name == "bias":
                        parameter.zero_()
                    elif norm:
                        parameter.fill_(1)
                    else:
                        parameter.normal_(0, 0.02, generator=generator)
        for name, buffer in component.named_buffers():
            assert name.endswith("position_ids"), name
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return components


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading and saving in silence; afterwards the bars of transformers and diffusers are as they were."""
    shown = [library for library in (transformers.utils.logging, diffusers.utils.logging) if _shows_bars(library)]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _shows_bars(library: Any) -> bool:
    return bool(library.is_progress_bar_enabled())


def _tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder / 'tokenizer'}: cannot be loaded as a CLIPTokenizer ({_first_line(error)})") from None
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except OSError:
        raise UserError(
            f"{path}: cannot be read; a base is a diffusers folder of a Stable Diffusion 1.x model"
        ) from None
    except ValueError:
        raise UserError(f"{path}: not valid JSON") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
