"""Bringing a base into memory: from a diffusers folder, from one checkpoint file, or from a seed.

Modules are built from the configs and filled from the files that `base_parts` names, each tensor of theirs once. So a
model is what its files say, all of it, or it is refused.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from efface.config_files import shown
from efface.errors import UserError
from efface.models.base import RANDOM, RANDOM_SEED, Base, BaseSpec, architecture, base_id, base_parts
from efface.models.files.component_configs import OF_THE_FILE, read_json
from efface.models.files.component_files import Parts, config_files
from efface.models.files.safetensors_headers import read_header
from efface.models.files.single_file import read_single_file
from efface.models.files.tensor_names import OtherShape, matched, plain
from efface.models.noise_scheduler import check_scheduler

Components = tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]


def load(spec: BaseSpec, device: str | torch.device) -> Base:
    """`load_base`, for a spec already read."""
    parts = base_parts(spec)
    scheduler_config = read_json(parts.configs["scheduler"])
    check_scheduler(parts.configs["scheduler"], scheduler_config)
    if spec.source.startswith(RANDOM):
        unet, vae, text_encoder = random_components(architecture(spec.source.removeprefix(RANDOM)), RANDOM_SEED)
    else:
        unet, vae, text_encoder = _filled(parts)
    for module in (unet, vae, text_encoder):
        module.to(device).eval().requires_grad_(False)
    return Base(
        spec=spec,
        fingerprint=base_id(spec),
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(parts, text_encoder.config),
        vae=vae,
        scheduler_config=scheduler_config,
        device=torch.device(device),
    )


def _filled(parts: Parts) -> Components:
    unet, vae, text_encoder = components = _shaped(parts.configs)
    modules: dict[str, nn.Module] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    if parts.single_file:
        _fill_from_file(parts.single_file, parts.configs["unet"].parents[1], modules)
    else:
        for component, module in modules.items():
            _fill_from_shards(component, module, parts.weights[component])
    return components


def _fill_from_shards(component: str, module: nn.Module, files: Sequence[Path]) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for entry in read_header(file):
            if entry.name in shapes:
                raise UserError(f"{file}: holds {shown(entry.name)}, as another part of the weights does too")
            shapes[entry.name] = entry.shape
    _fill(files[0].parent, component, module, shapes, _tensors(files))


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    yield name, tensors.get_tensor(name)
        except (OSError, SafetensorError):
            raise UserError(f"{file}: not a whole safetensors file") from None


def _fill_from_file(path: Path, configs: Path, modules: Mapping[str, nn.Module]) -> None:
    try:
        for component, tensors in read_single_file(path, modules).items():
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            _fill(path, component, modules[component], shapes, tensors.items())
    except OtherShape as error:
        misfit = str(error).removeprefix(f"{path}: ")
        raise UserError(
            f"{path}: does not fit the architecture in {configs} ({misfit}); if it has another one, name the folder of "
            "its configs as 'architecture' in the base's YAML"
        ) from None


def _fill(
    where: Path,
    component: str,
    module: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Gives a module on the meta device the values of `tensors`, in fp32; `shapes` are theirs, known beforehand."""
    wanted = {plain(component, name): tuple(parameter.shape) for name, parameter in module.named_parameters()}
    meant = matched(where, component, shapes, wanted)
    module.to_empty(device="cpu")
    _count_positions(module)
    empty = {plain(component, name): parameter for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, tensor in tensors:
            if name not in meant:
                continue
            if not tensor.is_floating_point():
                raise UserError(f"{where}: {shown(name)} is {tensor.dtype}, should be of floating point")
            parameter = empty.pop(meant[name]).copy_(tensor)
            # The sum is finite where all are, but for overflow; it is several times as fast, and takes no memory.
            if not parameter.sum().isfinite() and not parameter.isfinite().all():
                raise UserError(f"{where}: {shown(name)} holds numbers that are not finite")
    if empty:
        raise UserError(f"{where}: was changed while it was read")


def _count_positions(module: nn.Module) -> None:
    """The only buffers there are: 0, 1, …"""
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))


def empty_components(configs: Path) -> Components:
    """The components as the `configs` in a folder shape them, on the meta device: names and shapes without memory."""
    return _shaped(config_files(configs))


def _shaped(configs: Mapping[str, Path]) -> Components:
    made: list[Any] = []
    for component, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        config = read_json(configs[component])
        try:
            with torch.device("meta"):
                made.append(_text_encoder(config) if kind is CLIPTextModel else kind.from_config(config))
        except Exception as error:
            raise UserError(
                f"{configs[component]}: does not describe a {kind.__name__} ({_first_line(error)})"
            ) from None
    unet, vae, text_encoder = made
    return unet, vae, text_encoder


def _text_encoder(config: Mapping[str, Any]) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig.from_dict({key: value for key, value in config.items() if key not in OF_THE_FILE})
    )


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
        _count_positions(component)
    return components


def _tokenizer(parts: Parts, text_encoder: CLIPTextConfig) -> CLIPTokenizer:
    """The tokenizer, read from the files that belong to the base and from no others that lie beside them."""
    folder = parts.tokenizer[0].parent
    with tempfile.TemporaryDirectory(prefix="efface-") as alone:
        for file in parts.tokenizer:
            (Path(alone) / file.name).symlink_to(file.resolve())
        try:
            tokenizer = CLIPTokenizer.from_pretrained(alone, local_files_only=True)
            last = max(tokenizer.get_vocab().values())
        except Exception as error:
            raise UserError(f"{folder}: cannot be loaded as a CLIPTokenizer ({_first_line(error)})") from None
    window, wanted = tokenizer.model_max_length, text_encoder.max_position_embeddings
    if type(window) is not int or not 2 <= window <= wanted:
        raise UserError(
            f"{folder}: model_max_length is {shown(window)}, and the text encoder reads {wanted} tokens; set it to that"
        )
    if last >= text_encoder.vocab_size:
        raise UserError(
            f"{folder}: has tokens up to number {last}, and the text encoder vectors for {text_encoder.vocab_size}; "
            "load what was learnt into the base with diffusers (load_textual_inversion) and save both"
        )
    return tokenizer


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
