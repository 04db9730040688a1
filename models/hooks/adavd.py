"""AdaVD: adaptive value decomposer (Wang et al., CVPR 2025, arXiv 2412.06143).

In every cross-attention the values of a prompt's tokens lose what they share with those of the phrase to be forgotten:

    v' = v - s(cos(v_t, v)) <v_t, v> / <v_t, v_t> v_t,    s(x) = c / (1 + exp(-a (x - b)))

v_t is the value of the phrase's last token, of whatever position v is; that of the start-of-text token is left alone.
Several phrases are made orthogonal one after another (Gram and Schmidt), with s of each before that.

The authors' code takes a token's value under the empty prompt and under the prompt as one vector of twice the width,
and b = 0.93 goes with that: so does `pair`. Without it each value is decomposed by itself, as printed, and where there
is no empty prompt, at a guidance of 1, it always is.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from efface.config_files import StrictModel
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor, classifier_free_guidance
from efface.models.sampling.sampler_hooks import HOOKS, Guidance, HookConfig, SamplerHook
from efface.models.text.text_encoding import encode_prompts, last_subject_token

NEGLIGIBLE = 1e-9
"""Share of a target's square norm below which it is taken for one that the targets before it span."""


class AdaVDSettings(StrictModel):
    """The defaults are those of the authors' script, with the shift of the paper, which the script has as an option."""

    shift: bool = Field(True, description="whether s depends on the cosine; without, it is 1")
    steepness: float = Field(100.0, gt=0, description="a of s; authors 100")
    centre: float = Field(0.93, description="b of s, the cosine from which values count as the phrase's; authors 0.93")
    height: float = Field(2.0, gt=0, description="c of s, its greatest value; authors 2")
    pair: bool = Field(True, description="whether values under the empty prompt and the prompt are one vector")


class AdaVDConfig(AdaVDSettings, HookConfig):
    """Of one delta."""


@dataclass(frozen=True)
class Span:
    """Targets (…, n, d), and Gram and Schmidt's orthogonal q_i = sum_j P_ij v_j of them; fp32."""

    targets: Tensor
    matrix: Tensor
    """P, (…, n, n)."""
    dual: Tensor
    """q_i / <q_i, q_i>, (…, n, d); zeros where a target adds nothing to those before it."""


def span(targets: Tensor) -> Span:
    """Of targets (…, n, d)."""
    vectors = targets.double()
    rows = [row.expand(*vectors.shape[:-2], -1) for row in torch.eye(vectors.shape[-2]).to(vectors)]
    orthogonal: list[Tensor] = []
    dual: list[Tensor] = []
    for i, vector in enumerate(vectors.unbind(-2)):
        own = vector
        for j in range(i):
            share = (dual[j] * vector).sum(-1, keepdim=True)
            own, rows[i] = own - share * orthogonal[j], rows[i] - share * rows[j]
        square = own.square().sum(-1, keepdim=True)
        adds = square > NEGLIGIBLE * vector.square().sum(-1, keepdim=True)
        orthogonal.append(own)
        dual.append(torch.where(adds, own / square, 0.0))
    return Span(targets.float(), torch.stack(rows, dim=-2).float(), torch.stack(dual, dim=-2).float())


def lost(values: Tensor, phrases: Span, config: AdaVDSettings) -> Tensor:
    """What values (B, tokens, d) lose to the phrases, whose tensors are (tokens, n, …) or (1, n, …)."""
    values = values.unsqueeze(-2)
    weights = (values * phrases.dual).sum(-1).unsqueeze(-2) @ phrases.matrix  # (B, tokens, 1, n)
    if config.shift:
        cosines = torch.cosine_similarity(values, phrases.targets, dim=-1).unsqueeze(-2)
        weights = weights * config.height * torch.sigmoid(config.steepness * (cosines - config.centre))
    return (weights @ phrases.targets).squeeze(-2)


@HOOKS.register("adavd")
class AdaVD(SamplerHook):
    """Takes the phrases' values out of those of every prompt."""

    Config = AdaVDConfig

    def __init__(self, base: Base, config: AdaVDConfig) -> None:
        self.config = config
        last = last_subject_token(base, config.prompts)
        encoded = encode_prompts(base, config.prompts).encoder_hidden_states
        self.targets = encoded[range(len(last)), last]  # (n, D)
        self.empty = encode_prompts(base, [""]).encoder_hidden_states[0]  # (77, D)
        self.paired = False  # whether the rows of the pass under way are of the empty prompt, then of the prompts

    def guidance(self, prompts: Sequence[str], start: int = 0) -> Guidance:
        return self._guidance

    def _guidance(
        self,
        predict: NoisePredictor,
        latents: Tensor,
        timestep: Any,
        cond: Conditioning,
        uncond: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        self.paired = self.config.pair and guidance_scale > 1
        try:
            return classifier_free_guidance(predict, latents, timestep, cond, uncond, guidance_scale)
        finally:
            self.paired = False

    @contextmanager
    def attached(self, denoiser: Denoiser) -> Iterator[None]:
        """Behind every value projection, so that any kernel of attention may follow."""
        with ExitStack() as stack:
            for name, projection in denoiser.module.named_modules():
                if name.endswith("attn2.to_v"):
                    handle = projection.register_forward_hook(partial(self._erase, *self._spans(projection)))
                    stack.callback(handle.remove)
            yield

    def _spans(self, projection: Any) -> tuple[Span, Span]:
        """The phrases' values by themselves, and behind that of the empty prompt at every position but the first."""
        phrases, empty = (projection(x.to(projection.weight.dtype)).float() for x in (self.targets, self.empty[1:]))
        together = [x.expand(len(empty), len(phrases), -1) for x in (empty.unsqueeze(1), phrases.unsqueeze(0))]
        return span(phrases.unsqueeze(0)), span(torch.cat(together, dim=-1))

    def _erase(self, own: Span, paired: Span, projection: nn.Module, inputs: Any, values: Tensor) -> Tensor:
        """values (rows, 77, C)."""
        first, rest = values[:, :1], values[:, 1:].float()
        if self.paired:
            change = torch.cat(lost(torch.cat(rest.chunk(2), dim=-1), paired, self.config).chunk(2, dim=-1))
        else:
            change = lost(rest, own, self.config)
        return torch.cat([first, (rest - change).to(values.dtype)], dim=1)
