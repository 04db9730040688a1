"""A whole model in one file, in CompVis' layout, taken apart into components by diffusers' names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor

from efface.errors import UserError
from efface.models.files.base_kinds import check_tensors
from efface.models.files.tensor_names import TITLES, OtherShape, listed, unwrapped
from efface.models.files.weights_file import read_checkpoint

UNET = "model.diffusion_model."
VAE = "first_stage_model."
AVERAGES = "model_ema."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
"""Where a text encoder is: of Stable Diffusion 1.x, and of 2.x in OpenCLIP's own names."""
LEFT_OUT = "first_stage_model.loss."
"""Begins what training an autoencoder leaves beside it."""


def read_single_file(path: Path, modules: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each component by diffusers' names, as `modules` are shaped.

    Of a UNet's weights and their averages (EMA) the averages are taken, which are what the hub publishes of Stable
    Diffusion. Raises UserError where the file is broken, of another kind, or does not fit.
    """
    read = read_checkpoint(path)
    tensors = {unwrapped(name): tensor for name, tensor in read.items()}
    if len(tensors) < len(read):
        raise UserError(f"{path}: holds tensors twice, with and without a wrapper's name; save it without")
    check_tensors(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    parts = {"unet": _unet(path, tensors), "vae": _under(VAE, tensors)}
    convert = {"unet": convert_ldm_unet_checkpoint, "vae": convert_ldm_vae_checkpoint}
    found = {}
    for component, part in parts.items():
        try:
            made = convert[component]({**part}, config=dict(modules[component].config))
        except Exception as error:  # whatever stumbles over names that are not there
            raise _unlike(path, component, error) from None
        found[component] = {name: tensor for name, tensor in made.items() if tensor is not None}
        _check_all_taken(path, component, part, found[component])
    return {**found, "text_encoder": _text_encoder(path, tensors, modules["text_encoder"])}


def _unlike(path: Path, component: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    return UserError(f"{path}: has not the layout of a {TITLES[component]} of Stable Diffusion ({reason})")


def _under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by their whole names."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(start)}


def _unet(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's tensors, averaged where there are averages; CompVis' names for these have lost their dots."""
    weights = _under(UNET, tensors)
    averages = {name: AVERAGES + name.removeprefix("model.").replace(".", "") for name in weights}
    lacking = sorted(average for average in averages.values() if average not in tensors)
    if len(lacking) == len(weights):
        return weights
    if lacking:
        raise UserError(
            f"{path}: holds averages (EMA) of only {len(weights) - len(lacking)} of the UNet's {len(weights)} tensors, "
            f"without {listed(lacking)}; save it with all of them or none"
        )
    return {name: tensors[average] for name, average in averages.items()}


def _text_encoder(path: Path, tensors: Mapping[str, Tensor], module: Any) -> dict[str, Tensor]:
    part = _under(CLIP, tensors)
    if part:
        return {name.removeprefix(CLIP): tensor for name, tensor in part.items()}
    if not _under(OPEN_CLIP, tensors):
        raise UserError(f"{path}: holds no text encoder by a name of Stable Diffusion 1.x or 2.x")
    try:
        return dict(convert_open_clip_checkpoint(module, dict(tensors), prefix=OPEN_CLIP))
    except Exception as error:
        raise _unlike(path, "text_encoder", error) from None


def _check_all_taken(path: Path, component: str, part: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """diffusers passes over names it does not know; a model that has more than it would be another one."""
    taken = {tensor.data_ptr() for tensor in found.values()}
    left = sorted(name for name, tensor in part.items() if tensor.data_ptr() not in taken)
    left = [name for name in left if not name.startswith(LEFT_OUT)]
    if left:
        raise OtherShape(
            f"{path}: holds {len(left)} tensors that are none of the {TITLES[component]}'s ({listed(left)})"
        )
