"""A recipe: everything that fixes an image besides model, prompt and seed. The same one is used before and
after.

Recipes are YAML in `configs/recipes/`, found by name.
"""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from efface.config_files import StrictModel, find_config, read_config
from efface.files import content_id


class Recipe(StrictModel):
    name: str = Field(description="what people call it; no part of its id")
    scheduler: str = Field(description="pndm, ddim, dpm++ … or the name of any diffusers scheduler class")
    steps: int = Field(ge=1, le=1000, description="inference steps of the scheduler")
    guidance_scale: float = Field(ge=0, description="classifier-free guidance; up to 1: no unconditional half")
    height: int = Field(ge=8, multiple_of=8, description="pixels")
    width: int = Field(ge=8, multiple_of=8, description="pixels")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="of the UNet's forward pass"
    )
    negative_prompt: str = Field(default="", description="the prompt of the unconditional half")
    batch_size: int = Field(
        default=8, ge=1, description="images in every batch; part of what fixes an image's last bits"
    )

    @cached_property
    def id(self) -> str:
        """16 hex digits that stand for every field but the name."""
        return content_id(self.model_dump(exclude={"name"}))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe shipped in `configs/recipes/`, or in a YAML file of one's own."""
    return read_config(Recipe, find_config("recipes", name_or_path))
