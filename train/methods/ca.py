"""CA: Ablating Concepts in Text-to-Image Diffusion Models (Kumari et al., ICCV 2023, arXiv 2303.13516).

    L = E || eps_theta(x_t, c) - target ||^2  +  prior_weight E || eps_theta(x'_t, c_anchor) - eps' ||^2

x_t and x'_t are images of the anchor, made by the base, with forward noise eps at a uniform t in [0, 1000).
The target is, by `objective`,

    model   sg[ eps_theta(x_t, c_anchor) ]   the prediction of the model being edited, not of a frozen copy, under the
                                             anchor's caption, without gradient (eq. 5)
    noise   eps                              ordinary training on pairs of anchor image and target caption (eq. 3)

A model that predicts the velocity is trained on velocities, in both terms.

No guidance enters the loss. The prior keeps the anchor as it is.

Keys and values of the first token (BOS, the same in every prompt) are detached in the cross-attention, as
in the authors' code: what is learnt about one prompt should not go through what all prompts share.

Both terms are plain means, as in the paper. The authors' code shows each image in a random view (`augment`) and takes
the first term over the part of the latents that the view fills, summed over the four channels (`masked_loss`): four
times the mean. The prior has no mask, so that its weight of 1 is a quarter of the first term's.

Several concepts: trained jointly, in turns. In a chain the images are made by the model of the request before.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor, truth
from efface.models.shapes import ModelShapes
from efface.models.text.first_token import detach_first_token
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.anchor_images import AnchorConfig, AnchorImages, Draw
from efface.train.method import GradientMethod, Policy, Strategy, TrainingConfig, UnlearningTask, register
from efface.train.method_cost import BaseImages, Cost


class CAConfig(TrainingConfig, AnchorConfig):
    """CA at the length its authors run it, two GPUs with four samples each for 100 steps, with the prior on.

    Length and speed are set as what they come to, samples seen and learning rate: the authors' code scales
    both by the number of GPUs, and run on one GPU it stops at a quarter of the change.
    """

    objective: Literal["model", "noise"] = Field("model", description="the target, see above; paper: model-based")
    group: Literal["kv-xattn", "attn", "full"] = Field(
        "kv-xattn",
        description="what is trained: keys and values of the cross-attention (paper), all attention "
        "(authors, for nudity), or everything (authors, for memorised images)",
    )
    samples_seen: int = Field(800, ge=1, description="target samples in all; authors 100 steps x 8, nudity 400 x 8")
    effective_learning_rate: float = Field(
        3.2e-5,
        gt=0,
        description="of the optimiser, scaled by nothing; authors 2e-6 x 2 GPUs x batch 4 for styles and most objects, "
        "twice that with the prior, 6.4e-5 for nudity, 4e-6 for memorised images",
    )
    batch_size: int = Field(8, ge=1, description="target samples in one forward pass; authors 2 x 4")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="torch.optim's; authors AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW, per step and unit of learning rate; authors 0.01")
    max_grad_norm: float = Field(1.0, ge=0, description="global L2 norm of the gradient; authors 1, 0: no clipping")
    prior_weight: float = Field(
        1.0,
        ge=0,
        description="of the prior term, 0: no prior; authors none for styles and most objects, else 1 beside a first "
        "term that is four times the mean",
    )
    masked_loss: bool = Field(
        False, description="the first term over the view's region and summed over channels (authors), or a plain mean"
    )

    @model_validator(mode="after")
    def _grey_is_left_out(self) -> "CAConfig":
        if self.augment == "zoom" and not self.masked_loss:
            raise ValueError("augment: zoom leaves grey around an image, which masked_loss: true should leave out")
        return self


@dataclass(frozen=True)
class NoisyBatch:
    """Noised latents and what the student should predict for them. B samples, fp32."""

    latents: Tensor  # (B, 4, h, w)
    timesteps: Tensor  # (B,), int64
    conditioning: Conditioning  # B rows
    target: Tensor  # (B, 4, h, w)
    regions: Tensor | None = None  # (B, 1, h, w)


def masked_loss(predicted: Tensor, target: Tensor, regions: Tensor) -> Tensor:
    """The squared error of (B, 4, h, w) over each region (B, 1, h, w): the mean over places, the sum over channels."""
    errors = (predicted - target).square() * regions
    return (errors.sum((1, 2, 3)) / regions.sum((1, 2, 3))).mean()


@register("ca")
class CA(GradientMethod):
    """Concept Ablation: makes the concept's caption predict what the anchor's caption predicts."""

    Config = CAConfig
    config: CAConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    version = 2
    policy: ClassVar[Policy] = "none"
    packs: ClassVar[bool] = True

    @property
    def sees_others(self) -> bool:
        return self.config.sees_others

    @property
    def group(self) -> str:
        return self.config.group

    @property
    def steps(self) -> int:
        """As many as show at least `samples_seen` samples."""
        return -(-self.config.samples_seen // (self.config.batch_size * self.config.gradient_accumulation_steps))

    @property
    def learning_rate(self) -> float:
        return self.config.effective_learning_rate

    def cost(self, shapes: ModelShapes) -> Cost:
        config = self.config
        frozen = config.batch_size if config.objective == "model" else 0
        return Cost(
            trained_rows=config.batch_size * (2 if config.prior_weight > 0 else 1),
            frozen_rows=frozen,
            mean_frozen_rows=frozen,
            images=BaseImages(config.image_recipe(shapes.image_size), per_concept=config.anchor_images, encoded=True),
        )

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        self.base, self.student = task.base, student
        self.scheduler = DDPMScheduler.from_config(task.base.scheduler_config)
        batches = self.steps * self.config.gradient_accumulation_steps
        self.images = AnchorImages(task, self.config, self.config.batch_size, batches)
        self.encoded: dict[str, Conditioning] = {}
        detach_first_token(student)

    def batch(self, index: int) -> tuple[NoisyBatch, NoisyBatch | None]:
        """The samples to ablate, and those of the prior."""
        draw = self.images.draw("ablate", index)
        latents, true = self._noised(draw)
        anchor = self._encode(draw.anchors)
        wanted = true if self.config.objective == "noise" else self.student(latents, draw.timesteps, anchor)
        regions = draw.regions if self.config.masked_loss else None
        ablate = NoisyBatch(latents, draw.timesteps, self._encode(draw.targets), wanted, regions)
        if self.config.prior_weight == 0:
            return ablate, None
        draw = self.images.draw("prior", index)
        latents, true = self._noised(draw)
        return ablate, NoisyBatch(latents, draw.timesteps, self._encode(draw.anchors), true)

    def loss(self, student: NoisePredictor, batch: tuple[NoisyBatch, NoisyBatch | None]) -> Tensor:
        ablate, prior = batch
        if prior is None:
            return self._ablate_loss(student(ablate.latents, ablate.timesteps, ablate.conditioning), ablate)
        # One forward pass of both: DistributedDataParallel synchronises gradients once a pass.
        latents, timesteps = (
            torch.cat([getattr(ablate, name), getattr(prior, name)]) for name in ("latents", "timesteps")
        )
        conditioning = Conditioning.cat([ablate.conditioning, prior.conditioning])
        predicted_ablate, predicted_prior = student(latents, timesteps, conditioning).chunk(2)
        prior_loss = mse_loss(predicted_prior, prior.target)
        return self._ablate_loss(predicted_ablate, ablate) + self.config.prior_weight * prior_loss

    def _ablate_loss(self, predicted: Tensor, ablate: NoisyBatch) -> Tensor:
        if ablate.regions is None:
            return mse_loss(predicted, ablate.target)
        return masked_loss(predicted, ablate.target, ablate.regions)

    def _noised(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """The noised latents, and what should be predicted for them."""
        parts = draw.clean, draw.noise, draw.timesteps
        return self.scheduler.add_noise(*parts), truth(self.scheduler, *parts)

    def _encode(self, prompts: list[str]) -> Conditioning:
        """One row a prompt; each is encoded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.encoded]
        if new:
            self.encoded |= dict(zip(new, encode_prompts(self.base, new), strict=True))
        return Conditioning.cat([self.encoded[prompt] for prompt in prompts])
