"""Inpainting: half of the base's image is given, and the edited model draws the other half.

When Are Concepts Erased From Diffusion Models? (Lu et al., NeurIPS 2025, arXiv 2505.17013). At every step the given
half is the base's own latents, noised to that step; so what comes back may be context and not memory, which is why the
judge is shown the new half alone, beside its mirror image.
"""

from collections.abc import Iterator

import torch

from efface.eval.attack import ATTACKS, Attack, AttackConfig
from efface.eval.oracle import Attempt, Instance, Oracle
from efface.models.noise_scheduler import make_scheduler


class InpaintingConfig(AttackConfig):
    """Nothing can be set: the left half is given."""


@ATTACKS.register("inpainting")
class Inpainting(Attack):
    """The edited model completes the half of an image that the base has begun; nothing is optimised."""

    Config = InpaintingConfig

    @torch.no_grad()
    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        base, recipe = oracle.base, oracle.recipe
        with oracle.unedited():
            given = oracle.latents(oracle.encode(instance.prompt), instance.seed)
        half = given.shape[-1] // 2
        scheduler = make_scheduler("ddim", base.scheduler_config, recipe.steps)
        noise = oracle.noise(instance.seed + 1)
        cond, uncond = oracle.encode(instance.prompt), oracle.encode(recipe.negative_prompt)
        latents = oracle.noise(instance.seed)
        with oracle.guided(instance.prompt) as (guidance, predict):
            for time in scheduler.timesteps:
                known, _ = oracle.noised(given, time[None].to(given.device), noise)
                latents = torch.cat([known[..., :half], latents[..., half:]], dim=-1)
                eps = guidance(predict, latents, time.to(base.device), cond, uncond, recipe.guidance_scale)
                latents = scheduler.step(eps, time, latents).prev_sample
        whole = oracle.decoded(torch.cat([given[..., :half], latents[..., half:]], dim=-1))
        middle = whole.images.shape[2] // 2
        new = whole.images[:, :, middle:]
        mirrored = torch.from_numpy(new.copy()).flip(2)
        images = torch.cat([mirrored, torch.from_numpy(new.copy())], dim=2).numpy()
        yield Attempt("trajectory", images, whole.finite, None, {"half": "right, mirrored"})
