"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023, arXiv 2303.07345).

    L = || eps_theta(x_t, c) - [ eps*(x_t, 0) - eta (eps*(x_t, c) - eps*(x_t, 0)) ] ||^2        (eq. 7)

theta* is the frozen original. x_t comes from a partial denoising of noise under c, guidance 3, stopped
before a uniformly drawn step; by the model being edited (the paper, `on_policy=True`) or by theta* (the
authors' newer script). x_t is the state *before* step i and t = timesteps[i]; the paper's code mixes up two
neighbouring steps.

Erasing from a wider prompt f (the newer script's `erase_from`) keeps the edit local to f: trajectory and
student are conditioned on f, and the target is eps*(x_t, f) - eta (eps*(x_t, c) - eps*(x_t, 0)).

Several concepts: one of them, drawn uniformly, for each batch. In a chain theta* is the model of the request before.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor, partial_denoise
from efface.models.scheduler import make_scheduler
from efface.models.shapes import ModelShapes
from efface.models.text_encoding import encode_prompts
from efface.train.method import GradientConfig, GradientMethod, Policy, Strategy, UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.seeds import generator, integer, normal

GROUPS = {"x": "xattn", "u": "noxattn", "x-strict": "kv-xattn", "selfattn": "selfattn", "full": "full"}


class ESDConfig(GradientConfig):
    """ESD as in the paper: 1000 steps of Adam, on-policy."""

    variant: Literal["x", "u", "x-strict", "selfattn", "full"] = Field(
        "x",
        description="what is trained: all of the cross-attention (x; paper: styles), all but it, the time "
        "embedding and the output (u; paper: objects, nudity), the cross-attention's keys and values "
        "(x-strict), the self-attention, or everything",
    )
    steps: int = Field(1000, ge=1, description="optimiser steps; paper 1000, the authors' newer script 200")
    learning_rate: float = Field(1e-5, gt=0, description="of Adam; paper 1e-5, the authors' newer script 5e-5")
    eta: float = Field(
        1.0,
        ge=0,
        description="strength of the negative guidance, in the paper's sign convention: paper 1, which is "
        "the newer script's 2 (with erase_from both count alike); 0 distils the empty prompt, or erase_from",
    )
    erase_from: str | None = Field(
        None,
        min_length=1,
        description="a wider prompt to erase the concept from, for instance 'a painting'; none: itself",
    )
    on_policy: bool = Field(
        True,
        description="roll-outs by the model being edited (paper), or by the frozen original (newer script)",
    )
    guidance_scale: float = Field(3.0, ge=1, description="classifier-free guidance of the roll-outs; paper 3")
    rollout_steps: int = Field(50, ge=1, le=1000, description="DDIM steps of a whole trajectory; paper 50")


@dataclass(frozen=True)
class Rollout:
    """A stopped trajectory, what it was conditioned on, and what the frozen original says there. fp32."""

    latents: Tensor  # (B, 4, h, w)
    timestep: Tensor  # scalar, int64
    conditioning: Conditioning  # of the concept, or of erase_from; B rows
    target: Tensor  # (B, 4, h, w)


def esd_target(origin: Tensor, concept: Tensor, uncond: Tensor, eta: float) -> Tensor:
    """`origin - eta (concept - uncond)`, all of them the frozen original's noise predictions of one shape.

    `origin` is `uncond` in the paper (eq. 7), and the prediction under `erase_from` where that is given.
    """
    return origin - eta * (concept - uncond)


@register("esd")
class ESD(GradientMethod):
    """Erased Stable Diffusion: steers a concept's noise prediction away from the concept."""

    Config = ESDConfig
    config: ESDConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    policy: ClassVar[Policy] = "either"

    @property
    def group(self) -> str:
        return GROUPS[self.config.variant]

    def cost(self, shapes: ModelShapes) -> Cost:
        config, guided = self.config, 2 if self.config.guidance_scale > 1 else 1
        teacher_rows = 3 if config.erase_from else 2
        return Cost(
            trained_rows=config.batch_size,
            frozen_rows=config.batch_size * max(guided if config.rollout_steps > 1 else 0, teacher_rows),
            # a roll-out stops before step 0, 1, … or the last
            mean_frozen_rows=config.batch_size * (guided * (config.rollout_steps - 1) / 2 + teacher_rows),
        )

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        base = task.base
        self.seed = task.seed
        self.teacher = base.denoiser
        self.sampler: NoisePredictor = student if self.config.on_policy else self.teacher
        self.concepts = encode_prompts(base, [concept.phrase for concept in task.concepts])
        self.uncond = encode_prompts(base, [""])
        self.origin = encode_prompts(base, [self.config.erase_from]) if self.config.erase_from else None
        self.scheduler = make_scheduler("ddim", base.scheduler_config, self.config.rollout_steps)
        self.shape = (self.config.batch_size, *base.latent_shape)

    def batch(self, index: int) -> Rollout:
        rng = generator(self.seed, "esd", index)
        concept = self.concepts[integer(len(self.concepts), rng)]
        conditioning = concept if self.origin is None else self.origin
        stop = integer(self.config.rollout_steps, rng)
        noise = normal(self.shape, rng, concept.device)
        latents, timestep = partial_denoise(
            self.sampler, self.scheduler, conditioning, self.uncond, noise, self.config.guidance_scale, stop
        )
        timestep = timestep.to(concept.device)
        conditions = [concept, self.uncond] if self.origin is None else [concept, self.uncond, self.origin]
        eps_concept, eps_uncond, *eps_origin = self._teacher_predictions(latents, timestep, conditions)
        target = esd_target(eps_origin[0] if eps_origin else eps_uncond, eps_concept, eps_uncond, self.config.eta)
        return Rollout(latents, timestep, conditioning.expand(len(latents)), target)

    def loss(self, student: NoisePredictor, rollout: Rollout) -> Tensor:
        return mse_loss(student(rollout.latents, rollout.timestep, rollout.conditioning), rollout.target)

    def _teacher_predictions(
        self, latents: Tensor, timestep: Tensor, conditions: list[Conditioning]
    ) -> tuple[Tensor, ...]:
        """The frozen original's predictions under each condition of one row, in one forward pass."""
        together = Conditioning.cat([condition.expand(len(latents)) for condition in conditions])
        return self.teacher(latents.repeat(len(conditions), 1, 1, 1), timestep, together).chunk(len(conditions))
