"""The network that predicts noise, and that is edited: diffusers' UNet of any model family."""

from collections.abc import Iterator

from torch import Tensor, nn

from efface.models.conditioning import Conditioning
from efface.models.network import Network


class Denoiser(Network):
    """Itself a `NoisePredictor`, computed in the network's dtype and given back in fp32."""

    component = "unet"

    def __call__(self, latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
        dtype = next(self.module.parameters()).dtype
        conditioning = conditioning.to(dtype)
        # a UNet without additions of its family is called as its pipeline calls it
        added = {"added_cond_kwargs": dict(conditioning.added)} if conditioning.added else {}
        predicted: Tensor = self.module(
            latents.to(dtype), timestep, conditioning.encoder_hidden_states, **added
        ).sample.float()
        return predicted

    def cross_attention_projections(self) -> Iterator[nn.Module]:
        """The key and value projections of every cross-attention; their input is (B, tokens, D)."""
        for name, module in self.module.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                yield module
