"""The base: the unedited model, whose deltas are put in place and taken out again without a trace.

`read_base` knows what a name means, `base_parts` which files it stands for, and `base_id` what they hold; none of them
needs torch. `load_base` brings the modules into memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from efface.config_files import CONFIGS, StrictModel, find_config, list_configs, read_config, shown
from efface.errors import UserError, did_you_mean
from efface.files import content_id, local_path
from efface.models.family import FAMILIES
from efface.models.files.base_kinds import check_folder
from efface.models.files.component_configs import read_json
from efface.models.files.component_files import SINGLE_FILE, Parts, config_files, file_parts, folder_parts, shape_parts
from efface.models.files.model_files import CONFIG_FILES, DIFFUSERS_FILES, NotCached, locate
from efface.models.fingerprint import fingerprint
from efface.models.recipe import load_recipe
from efface.notebook_tables import html_table

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch import Tensor, nn
    from transformers import CLIPTextModel, CLIPTokenizer

    from efface.models.delta import Delta
    from efface.models.denoiser import Denoiser
    from efface.models.network import Network
    from efface.models.sampling_copy import SamplingCopy

RANDOM = "random:"
RANDOM_SEED = 0
DEFAULT_ARCHITECTURE = "sd-v1-4"
LARGEST_IMAGE = 4096


class BaseSpec(StrictModel):
    """A YAML file of `configs/bases/`."""

    name: str = Field(description="in commands, campaigns and tables")
    source: str = Field(
        description="a diffusers folder, 'package:FOLDER' shipped with efface, a hub id, one .safetensors "
        "or .ckpt file, or 'random:ARCHITECTURE'"
    )
    family: str = Field(default="sd1", description="the model family, in `models/families/` or of another package")
    image_size: int = Field(default=512, ge=8, description="pixels; the side of the images the model was trained on")
    recipe: str = Field(default="reference", description="the recipe its images are made by")
    judge: str | None = Field(default=None, description="the judge that knows its concepts")
    concepts: str | None = Field(default=None, description="a concept set it knows")
    prompts: str | None = Field(default=None, description="a prompt set for these concepts")
    image_encoder: str | None = Field(default=None, description="what `load_image_encoder` takes, for image features")
    architecture: str | None = Field(
        default=None, description="for one file: a folder of configs, by path or in configs/bases/"
    )


@dataclass(eq=False, repr=False)
class Base:
    """A loaded base. All modules are in eval mode, need no gradient, and are fp32."""

    spec: BaseSpec
    fingerprint: str
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]
    device: torch.device
    applied: Delta | None = None
    _originals: dict[str, Tensor] = field(default_factory=dict)
    _sampling_copies: dict[tuple[torch.dtype, bool], SamplingCopy] = field(default_factory=dict)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder, "vae": self.vae}

    @property
    def prediction_type(self) -> str:
        """What its UNet predicts: the noise, "epsilon", or the velocity, "v_prediction"."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def denoiser(self) -> Denoiser:
        """The network that predicts noise."""
        return FAMILIES.get(self.spec.family).denoiser(self)

    def network(self, component: Literal["unet", "text_encoder"]) -> Network:
        """The network of that name, to be edited: a `Denoiser` or a `TextEncoder`; not copied."""
        from efface.models.text_encoder import TextEncoder

        return self.denoiser if component == "unet" else TextEncoder(self.text_encoder)

    def sampling_copy(self, dtype: torch.dtype, compiled: bool = False) -> SamplingCopy:
        """The denoiser in another dtype, or compiled: made once, it follows every `swap`."""
        from efface.models.sampling_copy import SamplingCopy

        if (dtype, compiled) not in self._sampling_copies:
            self._sampling_copies[dtype, compiled] = SamplingCopy(self.denoiser, dtype, compiled)
        return self._sampling_copies[dtype, compiled]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image of the base's own size."""
        side = self.spec.image_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.unet.config.in_channels, side, side

    @property
    def state_id(self) -> str:
        """What images are a function of: the fingerprint, or with a delta in place a hash of both."""
        return content_id([self.fingerprint, self.applied.id]) if self.applied else self.fingerprint

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter by its full name ("unet.conv_in.weight"), as it is now; not copied."""
        return {name: parameter.data for name, parameter in named_parameters(self.modules).items()}

    def originals(self) -> dict[str, Tensor]:
        """Every parameter as it is without any delta; not copied."""
        return self.tensors() | self._originals

    def in_turn(self, key: str) -> AbstractContextManager[None]:
        """What only one at a time should do of the jobs that share this base, `key` being what it makes."""
        return nullcontext()

    def swap(self, delta: Delta | None, force: bool = False) -> None:
        """Put the tensors of `delta` in place of those of the delta before it; None leaves the base, bit for
        bit.

        Raises UserError, and changes nothing, where `delta` was made from another base (unless `force`) or
        does not fit this one.
        """
        edited = delta.edited(self, force) if delta else {}
        tensors = self.tensors()
        for name, value in self._originals.items():
            tensors[name].copy_(value)
        changed = {name: tensors[name] for name in (*self._originals, *edited)}
        self._originals = {name: tensors[name].clone() for name in edited}
        for name, value in edited.items():
            tensors[name].copy_(value)
        for sampling_copy in self._sampling_copies.values():
            sampling_copy.update(changed)
        self.applied = delta

    def _repr_html_(self) -> str:
        """As a notebook shows it: what it is, and what has been put into it."""
        parts = {
            name: sum(weight.numel() for weight in module.parameters()) / 1e6 for name, module in self.modules.items()
        }
        job = self.applied.provenance.get("job", {}) if self.applied else {}
        forgets = f", {job.get('method')} forgets {', '.join(job.get('concepts', ()))}" if job else ""
        rows = [
            ("base", self.spec.name),
            ("source", self.spec.source),
            ("fingerprint", self.fingerprint[:16]),
            ("image size", f"{self.spec.image_size} pixels"),
            ("predicts", self.prediction_type),
            ("parameters", ", ".join(f"{name} {count:.1f} million" for name, count in parts.items())),
            ("device", self.device),
            ("delta", f"{self.applied.id}{forgets}" if self.applied else "none: it is not edited"),
        ]
        return html_table(("", ""), rows)


def named_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters of `modules` by full name: component, dot, name in the component.

    Releases of transformers differ in a `text_model.` before the text encoder's names; full names go without
    it.
    """
    return {
        f"{component}.{name.removeprefix('text_model.')}": parameter
        for component, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def read_base(name_or_path: str | Path) -> BaseSpec:
    """What a name means: a base of `configs/bases/`, a YAML file, a diffusers folder, one file, or a hub id.

    Raises UserError where it is none of these. A hub id is not asked for yet.
    """
    name = str(name_or_path)
    try:
        return _read_base(name, local_path(name))
    except OSError:  # a name too long for the file system, a folder that may not be looked into
        raise _unknown_base(name) from None


def _read_base(name: str, path: Path) -> BaseSpec:
    if name in list_configs("bases") or (path.is_file() and path.suffix in (".yaml", ".yml")):
        return read_config(BaseSpec, find_config("bases", name))
    if name and (path.is_dir() or (path.is_file() and path.suffix in SINGLE_FILE)):
        image_size = _image_size(path)
        return BaseSpec(
            name=path.stem, source=str(path.resolve()), image_size=image_size, recipe=_recipe_for(image_size)
        )
    if name.startswith((RANDOM, "package:")) or (re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not path.exists()):
        return BaseSpec(name=name.split(":")[-1].split("/")[-1], source=name)
    raise _unknown_base(name)


def _unknown_base(name: str) -> UserError:
    return UserError(
        f"unknown base '{name}': {did_you_mean(name, list_configs('bases'))}; "
        "a diffusers folder, a .safetensors or .ckpt file, or a hub id would do too"
    )


def load_base(name_or_path: str | Path | BaseSpec, device: str | torch.device = "cpu") -> Base:
    """The base in memory on `device`. Raises UserError where its files are missing or do not fit."""
    spec = name_or_path if isinstance(name_or_path, BaseSpec) else read_base(name_or_path)
    return FAMILIES.get(spec.family).load(spec, device)


def base_id(spec: BaseSpec, fetch: bool = True) -> str:
    """The fingerprint `load_base(spec)` will have, without loading it: 64 hex digits.

    A model of the hub is fetched for it. Raises NotFetched where it should not be and is not here, and UserError where
    it is of a kind that efface cannot edit.
    """
    parts = base_parts(spec, fetch)
    with _readable(spec.source):
        return fingerprint(parts, None if parts.weights else RANDOM_SEED)


def text_encoder_id(spec: BaseSpec, fetch: bool = True) -> str:
    """The fingerprint of its text encoder and tokenizer alone, 64 hex digits: bases that share them have the same.

    Of a base in one file, whose parts cannot be distinguished without reading them, it is that of the whole. Raises as
    `base_id` does.
    """
    parts = base_parts(spec, fetch)
    if parts.single_file:
        return base_id(spec, fetch)
    component = "text_encoder"
    weights = {component: parts.weights[component]} if component in parts.weights else {}
    own = Parts({component: parts.configs[component]}, parts.tokenizer, weights)
    with _readable(spec.source):
        return fingerprint(own, None if parts.weights else RANDOM_SEED)


def base_parts(spec: BaseSpec, fetch: bool = True) -> Parts:
    """The files that make the base. Raises as `base_id` does."""
    with _readable(spec.source):
        if spec.source.startswith(RANDOM):
            return shape_parts(architecture(spec.source.removeprefix(RANDOM)))
        path = _located(spec.source, fetch)
        if path.is_dir():
            return folder_parts(path)
        return file_parts(path, architecture(spec.architecture or DEFAULT_ARCHITECTURE))


def _located(source: str, fetch: bool) -> Path:
    try:
        return locate(source, DIFFUSERS_FILES, fetch=False)
    except NotCached:
        if not fetch:
            raise
    configs = locate(source, CONFIG_FILES)
    check_folder(configs)
    config_files(configs)
    return locate(source, DIFFUSERS_FILES)


@contextmanager
def _readable(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror})") from None


def architecture(name_or_path: str) -> Path:
    """The folder of component configs (and a tokenizer) named by `BaseSpec.architecture`."""
    known = sorted(path.parent.name for path in (CONFIGS / "bases").glob("*/model_index.json"))
    for folder in (local_path(name_or_path), CONFIGS / "bases" / name_or_path):
        if (folder / "unet" / "config.json").is_file():
            return folder
    raise UserError(f"unknown architecture '{name_or_path}': {did_you_mean(name_or_path, known)}")


def _image_size(path: Path) -> int:
    """The latents' side times the VAE's factor, from the folder's configs; 512 where they are silent."""
    try:
        latents = read_json(path / "unet" / "config.json").get("sample_size")
        levels = read_json(path / "vae" / "config.json").get("block_out_channels")
    except UserError:  # reported by whoever reads more of it
        return 512
    if type(latents) is not int or not isinstance(levels, list):
        return 512
    size = latents * 2 ** min(len(levels) - 1, 16)
    if not 8 <= size <= LARGEST_IMAGE:
        raise UserError(f"{path / 'unet' / 'config.json'}: sample_size {shown(latents)} makes images of {size} pixels")
    return size


def _recipe_for(image_size: int) -> str:
    fitting = [name for name in ("reference", "miniature") if load_recipe(name).height == image_size]
    return fitting[0] if fitting else "reference"
