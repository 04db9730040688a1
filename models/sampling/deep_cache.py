"""DeepCache: deep features of the UNet reused for a few steps (Ma, Fang and Wang, CVPR 2024, arXiv 2312.00858).

Features change little from one step to the next, and the more slowly the deeper they lie. Every `interval`-th step is a
whole pass, which leaves what the last layer of the way up is given from below. In the steps between, only the first
convolution and that last layer are computed, on what was left. This changes the image, so it is part of a recipe.
"""

from typing import Any

import torch
from torch import Tensor

from efface.errors import UserError
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser

UNKNOWN_PARTS = ("encoder_hid_proj", "class_embedding", "add_embedding", "time_embed_act")
"""Parts of UNets of other families, whose passes are not taken apart here."""


class DeepCached:
    """A noise predictor for one batch, called at one timestep after another."""

    def __init__(self, predictor: Denoiser, network: Any, interval: int) -> None:
        """network: the UNet that `predictor` calls. Raises UserError where it is of another kind."""
        if any(getattr(network, part, None) is not None for part in UNKNOWN_PARTS):
            raise UserError("deep_cache: is for UNets of Stable Diffusion 1 and 2; leave it out of the recipe")
        self._predictor, self._network, self._interval = predictor, network, interval
        self._timestep: Any = None
        self._step = -1
        self._from_below: Tensor | None = None

    def __call__(self, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        if self._timestep is None or int(timestep) != self._timestep:
            self._timestep, self._step = int(timestep), self._step + 1
        from_below = self._from_below
        if self._step % self._interval == 0 or from_below is None or len(from_below) != len(latents):
            return self._whole(latents, timestep, conditioning)
        return self._shallow(latents, timestep, conditioning, from_below)

    def _whole(self, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        def keep(resnet: Any, inputs: tuple[Tensor, ...]) -> None:
            joined = inputs[0]
            self._from_below = joined[:, : joined.shape[1] - self._network.conv_in.out_channels]

        handle = self._network.up_blocks[-1].resnets[-1].register_forward_pre_hook(keep)
        try:
            return self._predictor(latents, timestep, conditioning)
        finally:
            handle.remove()

    def _shallow(
        self, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning, from_below: Tensor
    ) -> Tensor:
        unet = self._network
        latents, states = latents.to(from_below.dtype), conditioning.to(from_below.dtype).encoder_hidden_states
        embedding = unet.time_embedding(unet.get_time_embed(latents, timestep))
        last = unet.up_blocks[-1]
        hidden = last.resnets[-1](torch.cat([from_below, unet.conv_in(latents)], dim=1), embedding)
        if getattr(last, "attentions", None):
            hidden = last.attentions[-1](hidden, encoder_hidden_states=states, return_dict=False)[0]
        predicted: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return predicted.float()
