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

Left out of the authors' code: the zoom augmentation with its mask, whose normalisation makes the first term
four times the mean squared error (a one-channel mask over four latent channels). Both terms are plain means
here, as in the paper; `prior_weight=0.25` gives the code's balance.

Several concepts: trained jointly, in turns. In a chain the images are made by the model of the request before.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from efface.concepts.concept import Concept, Kind
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor, truth
from efface.models.recipe import Recipe
from efface.models.shapes import ModelShapes
from efface.models.text_encoding import encode_prompts
from efface.train.data.captions import captions
from efface.train.data.latents import Posterior, image_posterior
from efface.train.method import GradientMethod, Policy, Strategy, TrainingConfig, UnlearningTask, register
from efface.train.method_cost import BaseImages, Cost
from efface.train.seeds import generator, integers, normal


class CAConfig(TrainingConfig):
    """CA as its authors run it: two GPUs with four samples each, 100 steps, the prior on.

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
        description="of the optimiser, scaled by nothing; authors 2e-6 x 2 GPUs x batch 4, x 2 with the "
        "prior; nudity twice that, memorised images a quarter",
    )
    batch_size: int = Field(8, ge=1, description="target samples in one forward pass; authors 2 x 4")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="torch.optim's; authors AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW, per step and unit of learning rate; authors 0.01")
    max_grad_norm: float = Field(1.0, ge=0, description="global L2 norm of the gradient; authors 1, 0: no clipping")
    prior_weight: float = Field(
        1.0, ge=0, description="of the prior term; paper 1, the code's balance 0.25 (see above), 0: no prior"
    )
    anchor_prompts: int = Field(200, ge=1, description="captions of a concept's anchor; paper 200")
    anchor_images: int = Field(1000, ge=1, description="images of a concept's anchor, made by the base; paper 1000")
    image_scheduler: str = Field("dpm++", description="scheduler of these images; authors' code DPM-Solver")
    image_steps: int = Field(25, ge=1, le=1000, description="inference steps of these images; authors' code 25")
    image_guidance_scale: float = Field(6.0, ge=0, description="guidance of these images; authors' code 6")
    templates: dict[Kind, tuple[str, ...]] = Field(
        {}, description="own caption templates by the concept's kind, {} for its phrase; none: built-in ones"
    )

    @model_validator(mode="after")
    def _templates_have_one_placeholder(self) -> "CAConfig":
        for kind, templates in self.templates.items():
            for template in templates:
                if template.count("{}") != 1 or template.replace("{}", "").count("{"):
                    raise ValueError(f"templates of {kind} should hold one {{}} each, not '{template}'")
        return self


@dataclass(frozen=True)
class NoisyBatch:
    """Noised latents and what the student should predict for them. B samples, fp32."""

    latents: Tensor  # (B, 4, h, w)
    timesteps: Tensor  # (B,), int64
    conditioning: Conditioning  # B rows
    target: Tensor  # (B, 4, h, w)


@dataclass(frozen=True)
class Data:
    """A concept's training data: images of its anchor, and their captions encoded, one row each."""

    images: Posterior
    anchor: Conditioning
    target: Conditioning


@register("ca")
class CA(GradientMethod):
    """Concept Ablation: makes the concept's caption predict what the anchor's caption predicts."""

    Config = CAConfig
    config: CAConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    version = 2
    policy: ClassVar[Policy] = "none"

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
            images=BaseImages(self.recipe(shapes.image_size), per_concept=config.anchor_images, encoded=True),
        )

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        self.seed = task.seed
        self.student = student
        self.scheduler = DDPMScheduler.from_config(task.base.scheduler_config)
        self.data = [self._data(task, concept) for concept in task.concepts]
        detach_bos(student)

    def batch(self, index: int) -> tuple[NoisyBatch, NoisyBatch | None]:
        """The samples to ablate, and those of the prior."""
        latents, true, timesteps, target, anchor = self._sample_batch("ablate", index)
        wanted = true if self.config.objective == "noise" else self.student(latents, timesteps, anchor)
        ablate = NoisyBatch(latents, timesteps, target, wanted)
        if self.config.prior_weight == 0:
            return ablate, None
        latents, true, timesteps, _, anchor = self._sample_batch("prior", index)
        return ablate, NoisyBatch(latents, timesteps, anchor, true)

    def loss(self, student: NoisePredictor, batch: tuple[NoisyBatch, NoisyBatch | None]) -> Tensor:
        ablate, prior = batch
        if prior is None:
            return mse_loss(student(ablate.latents, ablate.timesteps, ablate.conditioning), ablate.target)
        # One forward pass of both: DistributedDataParallel synchronises gradients once a pass.
        latents, timesteps = (
            torch.cat([getattr(ablate, name), getattr(prior, name)]) for name in ("latents", "timesteps")
        )
        conditioning = Conditioning.cat([ablate.conditioning, prior.conditioning])
        predicted_ablate, predicted_prior = student(latents, timesteps, conditioning).chunk(2)
        prior_loss = mse_loss(predicted_prior, prior.target)
        return mse_loss(predicted_ablate, ablate.target) + self.config.prior_weight * prior_loss

    def _sample_batch(self, purpose: str, index: int) -> tuple[Tensor, Tensor, Tensor, Conditioning, Conditioning]:
        """Noised latents, what should be predicted, timesteps, and target and anchor captions encoded."""
        count = self.config.batch_size
        rng = generator(self.seed, purpose, index)
        clean, target, anchor = [], [], []
        for position in range(index * count, (index + 1) * count):
            turn, concept_index = divmod(position, len(self.data))
            data = self.data[concept_index]
            image = self._shuffled(purpose, concept_index, turn)
            noise = normal((1, *data.images.mean.shape[1:]), rng, data.images.mean.device)
            clean.append(data.images.latents(torch.tensor([image]), noise))
            target.append(data.target[image % len(data.target)])
            anchor.append(data.anchor[image % len(data.anchor)])
        latents = torch.cat(clean)
        noise = normal(tuple(latents.shape), rng, latents.device)
        timesteps = integers(self.scheduler.config.num_train_timesteps, count, rng).to(latents.device)
        noised = self.scheduler.add_noise(latents, noise, timesteps)
        true = truth(self.scheduler, latents, noise, timesteps)
        return noised, true, timesteps, Conditioning.cat(target), Conditioning.cat(anchor)

    def _shuffled(self, purpose: str, concept_index: int, turn: int) -> int:
        """The image shown in the concept's turn 0, 1, …: all of them once, in a new order each time round."""
        rounds, position = divmod(turn, self.config.anchor_images)
        order = torch.randperm(
            self.config.anchor_images, generator=generator(self.seed, purpose, concept_index, "round", rounds)
        )
        return int(order[position])

    def recipe(self, image_size: int, negative_prompt: str = "") -> Recipe:
        """What the anchor's images are made by."""
        return Recipe(
            name="anchor images",
            scheduler=self.config.image_scheduler,
            steps=self.config.image_steps,
            guidance_scale=self.config.image_guidance_scale,
            height=image_size,
            width=image_size,
            negative_prompt=negative_prompt,
        )

    def _data(self, task: UnlearningTask, concept: Concept) -> Data:
        pairs = captions(concept, task.concept_set, self.config.templates, self.config.anchor_prompts)
        recipe = self.recipe(task.base.spec.image_size, concept.phrase if concept.kind == "nsfw" else "")
        prompts = [pairs[number % len(pairs)].anchor for number in range(self.config.anchor_images)]
        return Data(
            images=image_posterior(task.base, recipe, prompts, task.cache),
            anchor=encode_prompts(task.base, [pair.anchor for pair in pairs]),
            target=encode_prompts(task.base, [pair.target for pair in pairs]),
        )


def detach_bos(denoiser: Denoiser) -> None:
    """Stop the gradient through keys and values of token 0 in every cross-attention; values keep their bits.

    Hooks on `to_k` and `to_v`, so that it holds for every attention backend.
    """
    for projection in denoiser.cross_attention_projections():
        projection.register_forward_hook(_detach_first_token)


def _detach_first_token(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """(B, tokens, C) with no gradient through the first token."""
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)
