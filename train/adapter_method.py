"""Methods whose delta is what they train: low-rank adapters on all linear layers of the transformer blocks."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from efface.models.adapters import add_adapters
from efface.models.denoiser import Denoiser
from efface.models.parameter_groups import select
from efface.train.method import GradientConfig, GradientMethod
from efface.train.seeds import generator


class AdapterConfig(GradientConfig):
    """The adapters' size, and the optimiser that SPM and FADE train them with."""

    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="authors: AdamW, 8-bit states")
    weight_decay: float = Field(0.01, ge=0, description="weight decay; their optimiser's default")
    rank: int = Field(1, ge=1, description="rank of the adapters; authors 1")
    alpha: float = Field(1.0, gt=0, description="the adapters are scaled by alpha/rank; authors 1")


class AdapterMethod(GradientMethod):
    """A method says what its loss is; its adapters are here."""

    config: AdapterConfig

    @property
    def group(self) -> str:
        return "transformer"

    def add_adapters(self, student: Denoiser, seed: int) -> None:
        names = [name.removesuffix(".weight") for name in select(student.modules, self.group)]
        rng = generator(seed, self.name, "adapters")
        self.adapters = add_adapters(student.modules, names, self.config.rank, self.config.alpha, rng)

    def trained(self, student: Denoiser) -> dict[str, nn.Parameter]:
        return self.adapters.parameters()

    def saved(self, student: Denoiser) -> dict[str, Tensor]:
        return self.adapters.tensors()
