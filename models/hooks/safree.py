"""SAFREE: training-free and adaptive guard (Yoon et al., ICLR 2025, arXiv 2410.12761).

Three parts, each a function of the prompt and of the phrases to be forgotten. With P_C the projection on the span of
the phrases' pooled encodings, and P_I that on the span of the prompt's own, p_i, each with token i masked:

- A token is a trigger where the prompt without it lies further from the phrases: d_i = |(I - P_C) p_i| is not less than
  (1 + alpha) times the mean of the other tokens' d. Its embedding e becomes (I - P_C) P_I e, within what the prompt
  spans and outside of what the phrases span.
- Self-validation: the first f = round(U sigmoid(2 k (10 z - m))) + 1 steps take the filtered prompt and the others the
  prompt itself, z being one less the mean cosine of the prompt's tokens and their projections.
- Latent re-attention: where a low frequency of a skip feature is higher under the filtered prompt than under the prompt
  itself, it is multiplied with s.

As in the authors' code the phrases are the negative prompt too. The code sets low frequencies to s where the paper
multiplies, and never calls it; here it is the paper's.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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
from efface.models.sampling.sampler_hooks import HOOKS, Guidance, HookConfig, SamplerHook, joined
from efface.models.text.text_encoding import encode_ids, encode_prompts, last_subject_token, token_ids

MASK_TOKEN = 0
"""The token that stands for a masked one: CLIP's "!", as in the authors' code."""


class SafreeSettings(StrictModel):
    """The defaults are the authors', for nudity; for artists their slope is 3.5 and their midpoint 5.5."""

    alpha: float = Field(0.01, ge=0, description="how much nearer than the others a token may come; authors 0.01")
    self_validation: bool = Field(True, description="whether the prompt decides how many steps are filtered")
    steps: int = Field(10, ge=0, description="U: steps filtered at most, but for one; authors 10, of 50")
    slope: float = Field(2.5, gt=0, description="k of the sigmoid; authors 2.5 for nudity, 3.5 for artists")
    midpoint: float = Field(5.333, description="m of the sigmoid; authors 5.333 for nudity, 5.5 for artists")
    negative_prompt: bool = Field(True, description="whether the phrases are the negative prompt too; authors yes")
    re_attention: bool = Field(True, description="whether skip features are filtered; a third more passes")
    skip_scales: tuple[float, float] = Field(
        (0.9, 0.2), description="s at the UNet's greatest width and at the next; authors 0.9, 0.2"
    )


class SafreeConfig(SafreeSettings, HookConfig):
    """Of one delta."""


def span_projection(rows: Tensor) -> Tensor:
    """The projection (D, D), fp64, on the span of rows (n, D)."""
    basis = rows.double()
    return torch.linalg.pinv(basis, rtol=1e-6) @ basis  # encodings are fp32: what they differ by less is rounding


def is_trigger(distances: Tensor, alpha: float) -> Tensor:
    """Of each token (n,), from the distances of the prompts without it to the phrases; a single one is a trigger."""
    others = (distances.sum() - distances) / (len(distances) - 1)
    return ~(distances < (1 + alpha) * others)


def filtered_steps(similarity: Tensor, steps: int, slope: float, midpoint: float) -> int:
    """U of self-validation, from the mean cosine of the prompt's tokens and their projections."""
    return round(steps * float(torch.sigmoid(2 * slope * (10 * (1 - similarity.double()) - midpoint))))


def re_attention(features: Tensor, scale: float) -> Tensor:
    """Skip features (3 B, C, h, w) of no prompt, the filtered and the original one: the second third is changed."""
    none, filtered, original = features.chunk(3)
    frequencies, unfiltered = (torch.fft.fftshift(torch.fft.fft2(x.float()), (-2, -1)) for x in (filtered, original))
    row, column = (side // 2 for side in features.shape[-2:])
    low = (..., slice(max(0, row - 1), row + 1), slice(max(0, column - 1), column + 1))
    above = frequencies[low].real > unfiltered[low].real
    frequencies[low] = torch.where(above, scale * frequencies[low], frequencies[low])
    changed = torch.fft.ifft2(torch.fft.ifftshift(frequencies, dim=(-2, -1))).real
    return torch.cat([none, changed.to(features.dtype), original])


@dataclass(frozen=True)
class Filtered:
    """A prompt after the filter."""

    embedding: Tensor
    """(1, 77, D)."""
    last_step: int
    """The last of the steps, from 0, that take it."""


@HOOKS.register("safree")
class Safree(SamplerHook):
    """Projects a prompt's trigger tokens out of the span of the phrases."""

    Config = SafreeConfig

    def __init__(self, base: Base, config: SafreeConfig) -> None:
        self.base, self.config = base, config
        self.unsafe = joined(base, config.prompts) if config.negative_prompt else None
        ids, last = token_ids(base, config.prompts), last_subject_token(base, config.prompts)
        phrases = encode_ids(base.text_encoder, ids)[range(len(last)), [position + 1 for position in last]]
        identity = torch.eye(phrases.shape[-1], dtype=torch.float64, device=phrases.device)
        self.off_phrases = identity - span_projection(phrases)
        self.triplets = False  # whether the rows of the pass under way are of no prompt, the filtered and the original

    @classmethod
    def passes(cls, settings: SafreeSettings) -> int:
        return 3 if settings.re_attention else 2

    def filter(self, prompt: str) -> Filtered:
        """The prompt's embedding and steps."""
        ids, (last,) = token_ids(self.base, [prompt]), last_subject_token(self.base, [prompt])
        embedding = encode_prompts(self.base, [prompt]).encoder_hidden_states
        if last == 0:  # an empty prompt has no token to mask
            return Filtered(embedding, -1)
        masked = ids.repeat(last, 1)
        masked[range(last), range(1, last + 1)] = MASK_TOKEN
        pooled = encode_ids(self.base.text_encoder, masked)[:, last + 1].double()
        projected = embedding[0].double() @ (self.off_phrases @ span_projection(pooled)).T
        trigger = torch.zeros(ids.shape[1], 1, dtype=torch.bool, device=ids.device)
        trigger[1 : last + 1, 0] = is_trigger((pooled @ self.off_phrases).norm(dim=-1), self.config.alpha)
        config, last_step = self.config, 10**9
        if config.self_validation:
            own = slice(0, last + 2)  # with the tokens of begin and end
            similarity = torch.cosine_similarity(projected[own], embedding[0, own].double(), dim=-1).mean()
            last_step = filtered_steps(similarity, config.steps, config.slope, config.midpoint)
        return Filtered(torch.where(trigger, projected.to(embedding), embedding[0])[None], last_step)

    def guidance(self, prompts: Sequence[str], start: int = 0) -> Guidance:
        known = {prompt: self.filter(prompt) for prompt in dict.fromkeys(prompts)}
        rows = [known[prompt] for prompt in prompts]
        embeddings = torch.cat([row.embedding for row in rows])
        return _FilteredGuidance(self, embeddings, [row.last_step for row in rows], start)

    @contextmanager
    def attached(self, denoiser: Denoiser) -> Iterator[None]:
        """Around every block of the way up, whose skip features are known before its resnets join them."""
        with ExitStack() as stack:
            if self.config.re_attention:
                widths = sorted(set(denoiser.module.config.block_out_channels), reverse=True)
                scales = dict(zip(widths, self.config.skip_scales, strict=False))
                for block in denoiser.module.up_blocks:
                    handle = block.register_forward_pre_hook(partial(self._filter_skips, scales), with_kwargs=True)
                    stack.callback(handle.remove)
            yield

    def _filter_skips(
        self, scales: dict[int, float], block: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.triplets:
            return None
        skips = list(options["res_hidden_states_tuple"])
        resnets: Any = block.resnets
        widths = [options["hidden_states"].shape[1], *(resnet.out_channels for resnet in resnets)]
        for position, width in enumerate(widths[: len(resnets)], start=1):  # the last skip is the first one's
            if width in scales:
                skips[-position] = re_attention(skips[-position], scales[width])
        return inputs, {**options, "res_hidden_states_tuple": tuple(skips)}


class _FilteredGuidance:
    """The guidance of one batch."""

    def __init__(self, hook: Safree, embeddings: Tensor, last_steps: list[int], start: int) -> None:
        """embeddings: filtered, (B, 77, D)."""
        self.hook, self.embeddings, self.step = hook, embeddings, start
        self.last_steps = torch.tensor(last_steps, device=embeddings.device)[:, None, None]

    def __call__(
        self,
        predict: NoisePredictor,
        latents: Tensor,
        timestep: Any,
        cond: Conditioning,
        uncond: Conditioning,
        guidance_scale: float,
    ) -> Tensor:
        hook = self.hook
        uncond = hook.unsafe or uncond
        states = torch.where(self.step <= self.last_steps, self.embeddings, cond.encoder_hidden_states)
        safe = replace(cond, encoder_hidden_states=states)
        self.step += 1
        if guidance_scale <= 1 or not hook.config.re_attention:
            return classifier_free_guidance(predict, latents, timestep, safe, uncond, guidance_scale)
        hook.triplets = True
        try:
            rows = Conditioning.cat([uncond.expand(len(latents)), safe, cond])
            pred_0, pred_c, _ = predict(latents.repeat(3, 1, 1, 1), timestep, rows).chunk(3)
        finally:
            hook.triplets = False
        return pred_0 + guidance_scale * (pred_c - pred_0)
