"""A base as shapes without numbers, on torch's meta device: what memory and operations are counted from."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from efface.models.activation_cost import PassCost, Precision, pass_cost, unet_pass_cost
from efface.models.base import DEFAULT_ARCHITECTURE, RANDOM, SINGLE_FILE, BaseSpec, architecture
from efface.models.files.component_configs import read_json
from efface.models.files.model_files import DIFFUSERS_FILES, locate
from efface.models.loading import empty_components
from efface.models.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class ModelShapes:
    """The modules of a base on the meta device, and what its images are made by."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    image_size: int
    recipe: Recipe = field(compare=False)
    """The one the base's images are made by."""
    scheduler_config: dict[str, Any] = field(compare=False)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The components by the first part of their parameters' full names."""
        return {"unet": self.unet, "text_encoder": self.text_encoder, "vae": self.vae}

    @property
    def latent_size(self) -> int:
        return self.image_size // self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def parameters(self) -> int:
        """Of all components."""
        return sum(parameter.numel() for module in self.modules.values() for parameter in module.parameters())

    def unet_pass(self, rows: int, height: int, width: int, precision: Precision = "fp32") -> PassCost:
        """A noise prediction without gradient for latents (rows, C, height, width)."""
        return cached_unet_pass_cost(self.unet, (), rows, height, width, precision)

    def decode_pass(self, rows: int, height: int, width: int) -> PassCost:
        """Latents (rows, C, height, width) made images by the VAE."""
        latents = _zeros(rows, self.vae.config.latent_channels, height, width)
        return pass_cost(self.vae, lambda: self.vae.decode(latents).sample, False)

    def encode_pass(self, rows: int, height: int, width: int) -> PassCost:
        """Images made latents (rows, C, height, width) by the VAE."""
        pixels = _zeros(rows, 3, height * self.pixels_per_latent, width * self.pixels_per_latent)
        return pass_cost(self.vae, lambda: self.vae.encode(pixels).latent_dist.mean, False)


@lru_cache(maxsize=4)
def model_shapes(base: BaseSpec) -> ModelShapes:
    """The shapes of a base from its configs alone. Raises NotCached where they are on the hub and not here."""
    if base.source.startswith(RANDOM):
        folder = architecture(base.source.removeprefix(RANDOM))
    elif base.architecture or base.source.endswith(SINGLE_FILE):
        folder = architecture(base.architecture or DEFAULT_ARCHITECTURE)
    else:
        folder = locate(base.source, DIFFUSERS_FILES, fetch=False)
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    return ModelShapes(*empty_components(folder), base.image_size, load_recipe(base.recipe), scheduler_config)


cached_unet_pass_cost = lru_cache(maxsize=64)(unet_pass_cost)
"""`unet_pass_cost`, counted once; what is trained is given as a tuple."""


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, device="meta")
