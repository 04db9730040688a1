"""The network that predicts noise, and that is edited: diffusers' UNet of any model family."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from efface.models.conditioning import Conditioning


class Denoiser:
    """Itself a `NoisePredictor`, computed in the network's dtype and given back in fp32."""

    component = "unet"
    """The first part of its parameters' full names."""

    def __init__(self, module: nn.Module) -> None:
        """module: the network, or what wraps it for several processes."""
        self.module: Any = module

    def __call__(self, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        dtype = next(self.module.parameters()).dtype
        conditioning = conditioning.to(dtype)
        # a UNet without additions of its family is called as its pipeline calls it
        added = {"added_cond_kwargs": dict(conditioning.added)} if conditioning.added else {}
        predicted: Tensor = self.module(
            latents.to(dtype), timestep, conditioning.encoder_hidden_states, **added
        ).sample.float()
        return predicted

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The edited modules by the first part of their parameters' full names."""
        return {self.component: self.module}

    def copy(self) -> "Denoiser":
        """A deep copy to be trained: fp32, in eval mode, without gradient."""
        return type(self)(copy.deepcopy(self.module).float().eval().requires_grad_(False))

    def wrapped(self, wrap: nn.Module) -> "Denoiser":
        """The same, called through what wraps the network for several processes."""
        return type(self)(wrap)

    def cross_attention_projections(self) -> Iterator[nn.Module]:
        """The key and value projections of every cross-attention; their input is (B, tokens, D)."""
        for name, module in self.module.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                yield module
