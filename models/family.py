"""A model family: bases that are loaded, encode their prompts and call their denoiser in one way.

`models/families/` has one file for each; a package of somebody else's adds one through the entry point group
`efface.families`. A base's YAML names its family.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from efface.registry import Registry

if TYPE_CHECKING:
    import torch

    from efface.models.base import Base, BaseSpec
    from efface.models.conditioning import Conditioning
    from efface.models.denoiser import Denoiser


class Family(ABC):
    """What differs from family to family; methods, the sampler and deltas know nothing else of one."""

    @abstractmethod
    def load(self, spec: "BaseSpec", device: "str | torch.device") -> "Base":
        """The base in memory, as `load_base`."""

    @abstractmethod
    def encode_prompts(self, base: "Base", prompts: Sequence[str]) -> "Conditioning":
        """One row a prompt, fp32 on the base's device, without gradient; each prompt is encoded by itself."""

    @abstractmethod
    def denoiser(self, base: "Base") -> "Denoiser":
        """The base's own network, not copied."""


FAMILIES: Registry[Family] = Registry("model family", "efface.families", package="efface.models.families")


def register(name: str) -> "Callable[[type[Family]], type[Family]]":
    """Class decorator that makes a family known by `name`."""

    def decorate(family: type[Family]) -> type[Family]:
        FAMILIES.register(name)(family())
        return family

    return decorate
