"""A recipe: everything that fixes an image besides model, prompt and seed. The same one is used before and
after.

Recipes are YAML in `configs/recipes/`, found by name.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from efface.config_files import StrictModel, find_config, read_config
from efface.files import content_id

Dtype = Literal["float32", "float16", "bfloat16"]

LARGEST_AUTO_BATCH = 64
"""Images; a GPU is busy with fewer, and more would wait longer for the first."""

LATER = ("vae_dtype", "compiled", "deep_cache", "token_merging")
"""Fields that recipes had none of when ids of images were first kept: at their defaults they are no part of an id."""


class Recipe(StrictModel):
    name: str = Field(description="what people call it; no part of its id")
    scheduler: str = Field(description="pndm, ddim, dpm++ … or the name of any diffusers scheduler class")
    steps: int = Field(ge=1, le=1000, description="inference steps of the scheduler")
    guidance_scale: float = Field(ge=0, description="classifier-free guidance; up to 1: no unconditional half")
    height: int = Field(ge=8, multiple_of=8, description="pixels")
    width: int = Field(ge=8, multiple_of=8, description="pixels")
    dtype: Dtype = Field(default="float32", description="of the UNet's forward pass")
    negative_prompt: str = Field(default="", description="the prompt of the unconditional half")
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default=8,
        description="images in every batch, part of what fixes an image's last bits; auto: as many as the memory holds",
    )
    vae_dtype: Dtype = Field(default="float32", description="of the VAE's decoder")
    compiled: bool = Field(
        default=False, description="on a GPU, whether the UNet's blocks are compiled, which rounds elsewhere"
    )
    deep_cache: int = Field(default=1, ge=1, description="DeepCache: a whole pass of the UNet every so many steps")
    token_merging: float = Field(
        default=0.0, ge=0, le=0.75, description="ToMe: share of tokens merged in self-attention at full resolution"
    )

    @property
    def smallest_batch(self) -> int:
        """Images in a batch at least."""
        return 1 if self.batch_size == "auto" else self.batch_size

    @property
    def largest_batch(self) -> int:
        """Images in a batch at most."""
        return LARGEST_AUTO_BATCH if self.batch_size == "auto" else self.batch_size

    @cached_property
    def id(self) -> str:
        """16 hex digits that stand for every field but the name; a field of `LATER` counts where it is set."""
        unset = {field for field in LATER if getattr(self, field) == type(self).model_fields[field].default}
        return content_id(self.model_dump(exclude={"name", *unset}))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe shipped in `configs/recipes/`, or in a YAML file of one's own."""
    return read_config(Recipe, find_config("recipes", name_or_path))
