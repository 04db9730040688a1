"""A base and its networks as a packed job sees them: the pack answers what they are asked (`trainer/pack.py`)."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.network import sharing_copy
from efface.models.prompt_projections import ProjectedOnce
from efface.models.stacked_layers import StackedLayers
from efface.train.trainer.options import Halves, TrainingOptions, convert

if TYPE_CHECKING:
    from efface.train.trainer.pack import Member


@dataclass(eq=False, repr=False)
class PackedBase(Base):
    """The base, with all its modules the pack's own."""

    member: "Member" = None  # type: ignore[assignment]

    @classmethod
    def of(cls, base: Base, member: "Member") -> "PackedBase":
        parts = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
        return cls(**parts, member=member)

    @property
    def denoiser(self) -> Denoiser:
        return PackedDenoiser(super().denoiser, self.member)

    def in_turn(self, key: str) -> AbstractContextManager[None]:
        return self.member.in_turn(key)


class PackedDenoiser(Denoiser):
    """The frozen network."""

    def __init__(self, denoiser: Denoiser, member: "Member") -> None:
        """denoiser: the family's own, which computes predictions."""
        super().__init__(denoiser.module)
        self.denoiser, self.member = denoiser, member

    def __call__(self, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        return self.member.predict(self, latents, timestep, conditioning)

    def copy(self) -> Any:
        """A copy to be trained, whose tensors are the base's own until `own` is called."""
        return EditedDenoiser(self.denoiser.wrapped(sharing_copy(self.module)), self.member)

    def wrapped(self, wrap: nn.Module) -> Any:
        """Itself for its own module, and for what only saves it work; another module is called alone."""
        module = wrap.network if isinstance(wrap, ProjectedOnce) else wrap
        return self if module is self.module else self.denoiser.wrapped(wrap)


class EditedDenoiser(PackedDenoiser):
    """A job's network, with tensors of its own where the job changes them."""

    def __init__(self, denoiser: Denoiser, member: "Member") -> None:
        super().__init__(denoiser, member)
        self._shared = {tensor.data_ptr() for _, tensor in named_tensors(self.module)}

    @cached_property
    def differing(self) -> dict[str, Tensor]:
        """The parameters and buffers that are its own, by their names in the module; fixed once training begins."""
        return {name: tensor for name, tensor in named_tensors(self.module) if tensor.data_ptr() not in self._shared}


class StackedDenoiser:
    """The networks of several jobs as one."""

    def __init__(
        self,
        like: EditedDenoiser,
        options: TrainingOptions,
        precision: Literal["fp32", "bf16"],
        halves: Halves | None = None,
    ) -> None:
        self.names = list(like.differing)
        module = sharing_copy(like.module)
        own = dict(named_tensors(module))
        self.denoiser = like.denoiser.wrapped(module)
        convert(self.denoiser, options, precision, [own[name] for name in self.names], halves)
        self.layers = StackedLayers(module, self.names)

    def predict(
        self, edited: Sequence[EditedDenoiser], latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The rows of the first job by its own network, then those of the second, …; equally many of each."""
        with self.layers.holding([one.differing for one in edited]):
            return self.denoiser(latents, timesteps, conditioning)


def clock_of(base: Base) -> Callable[[], float]:
    """What tells the seconds that go into a job: of a packed one, its share of what is done for several."""
    return base.member.clock if isinstance(base, PackedBase) else time.perf_counter


def named_tensors(module: Any) -> Any:
    return itertools.chain(module.named_parameters(), module.named_buffers())
