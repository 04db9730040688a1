"""Receler's erasers at sampling time (Huang et al., ECCV 2024, arXiv 2311.17717).

`models/receler_erasers.py` has the formula. The delta holds their tensors; they act on every prompt alike.
"""

from contextlib import AbstractContextManager

from efface.errors import UserError
from efface.models.base import Base
from efface.models.denoiser import Denoiser
from efface.models.receler_erasers import erasers_attached, fits
from efface.models.sampling.sampler_hooks import HOOKS, HookConfig, SamplerHook


class RecelerHookConfig(HookConfig):
    """The prompts are those that the erasers were trained on; at sampling time they play no part."""


@HOOKS.register("receler")
class RecelerHook(SamplerHook):
    """Adds to the output of every cross-attention what its eraser makes of it."""

    Config = RecelerHookConfig

    def __init__(self, base: Base, config: RecelerHookConfig) -> None:
        assert base.applied is not None
        self.tensors = base.applied.tensors
        if not fits(base.denoiser, self.tensors):
            raise UserError(f"delta {base.applied.id} has no eraser for each cross-attention of '{base.spec.name}'")

    def attached(self, denoiser: Denoiser) -> AbstractContextManager[None]:
        return erasers_attached(denoiser, self.tensors)
