"""A copy of the denoiser to sample with, in another dtype or compiled, that stays in memory from model to model.

A delta is put into it tensor by tensor, in place, so that nothing is copied or compiled anew.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from efface.models.compiled_blocks import compile_blocks
from efface.models.denoiser import Denoiser
from efface.models.prompt_projections import ProjectedOnce, prompts_projected_once


class SamplingCopy:
    """The denoiser of a base as it stands, with or without a delta; on a GPU its convolutions are channels-last."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype, compiled: bool, backend: str = "inductor") -> None:
        module = nn.Module.to(copy.deepcopy(denoiser.module), dtype)
        if next(module.parameters()).device.type == "cuda":
            module = module.to(memory_format=torch.channels_last)
        self.denoiser = denoiser.wrapped(module)
        self._parameters = {f"{denoiser.component}.{name}": value for name, value in module.named_parameters()}
        self._compiled: ProjectedOnce | None = None
        if compiled:
            compile_blocks(module, backend)
            self._compiled = ProjectedOnce(self.denoiser)
            self._compiled.attach()

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take these values of the base, by full name; names of other components are passed over."""
        for name in tensors.keys() & self._parameters.keys():
            self._parameters[name].copy_(tensors[name])
        if self._compiled:
            self._compiled.forget()

    @contextmanager
    def predictor(self, hooked: bool = False) -> Iterator[Denoiser]:
        """What predicts, each batch of prompts projected once. hooked: something acts on modules inside of it."""
        if self._compiled is None:
            with prompts_projected_once(self.denoiser) as predict:
                yield predict
            return
        # hooks of samplers hold other numbers at each step, and would be compiled anew with them
        with torch.compiler.set_stance("force_eager" if hooked else "default"):
            yield self.denoiser.wrapped(self._compiled)
