"""MACE: Mass Concept Erasure in Diffusion Models (Lu et al., CVPR 2024, arXiv 2403.06135).

Three stages, on to_k and to_v of the text cross-attention:

1. *Refinement*, in closed form: in sentences about the concept, all words but its own get the keys and values that they
   have in the same sentence about its anchor, so that nothing of the concept is left in its surroundings.
2. *An adapter for each concept*, of rank `rank` on the refined weights, trained to attend to the concept nowhere:

       L = sum_layers || A[pixels of the mask, tokens of the concept] ||_F

   A are the probabilities of cross-attention for a noised image of the concept under a sentence that names it; the
   tokens are the concept's and, with `pooler`, those of the end of text. Timesteps are drawn in proportion to
   sigmoid( 0.05 (t - 200) ) - sigmoid( 0.05 (t - 400) ), where concepts take shape.
3. *Fusion*, in closed form: one change of the weights that gives all tokens of each concept's sentences what its
   adapter gives them, and what is kept what it had.

Both closed forms keep general captions and what is retained at their original values, and change at the price `ridge`.
`masks` are of a detector and a segmenter (authors), or where the base itself attends to the concept (`attention`).
Several concepts have an adapter each, trained side by side, each on its own sentences alone.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from efface.concepts.concept import Concept, Kind
from efface.models.attention_maps import CrossAttentionMaps
from efface.models.concept_adapters import ConceptAdapters
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.parameter_groups import select
from efface.models.shapes import ModelShapes
from efface.train.closed_form import Statistics, ridge_solve
from efface.train.data.captions import everyday_captions
from efface.train.data.concept_keys import encode, second_moment
from efface.train.data.concept_masks import MaskConfig, concept_masks
from efface.train.data.concept_sentences import Sentences, sentences
from efface.train.data.latents import ImageConfig, Posterior, image_posterior, noised
from efface.train.data.score_distance import AnchoredConfig
from efface.train.data.timesteps import importance
from efface.train.method import GradientConfig, GradientMethod, Strategy, UnlearningTask, register
from efface.train.method_cost import BaseImages, Cost
from efface.train.seeds import generator, integer, shuffled


class MACEConfig(GradientConfig, ImageConfig, MaskConfig, AnchoredConfig):
    """MACE as its authors run it for a celebrity."""

    steps: int = Field(50, ge=1, description="optimiser steps, each of every concept's adapter; authors 50, nudity 120")
    learning_rate: float = Field(1e-4, gt=0, description="learning rate; authors 1e-4, objects and nudity 1e-5")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="torch.optim's; authors AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW; authors 0.01")
    max_grad_norm: float = Field(1.0, ge=0, description="global L2 norm of the gradient; authors 1, 0: no clipping")
    rank: int = Field(1, ge=1, description="rank of a concept's adapters; authors 1")
    captions: int = Field(30, ge=1, description="sentences of a concept; authors 30")
    templates: dict[Kind, tuple[str, ...]] = Field(
        {}, description="own sentences by the concept's kind, {} for its phrase; none: built-in ones"
    )
    images: int = Field(8, ge=1, description="images of a concept, made by the base; authors 8")
    image_steps: int = Field(30, ge=1, le=1000, description="inference steps of these images; authors 30")
    pooler: Literal["none", "eos", "all"] = Field(
        "all", description="end-of-text tokens that count as the concept's: none, the first, all (authors, SD 1.x)"
    )
    importance_sampling: bool = Field(True, description="timesteps as above, or uniform; authors: nudity uniform")
    ridge: float = Field(0.1, gt=0, description="price of change of both closed forms; authors 0, objects 10")
    general_weight: float = Field(
        62.0, ge=0, description="how many everyday captions are kept; authors 1e-4 of COCO's 617,000, objects none"
    )
    general_captions: tuple[str, ...] = Field((), description="these captions; none: 200 of everyday scenes")
    retained_weight: float = Field(
        24.0, ge=0, description="how often each retained concept is kept; authors 0.8 of 30 sentences of each"
    )


@dataclass(frozen=True)
class Data:
    sentences: Sentences
    positions: Tensor  # (sentences, tokens), bool: where the concept is
    images: Posterior
    masks: Tensor  # (images, h, w), bool


@dataclass(frozen=True)
class MACEBatch:
    """Noised images of one concept. B samples."""

    concept: int
    latents: Tensor  # (B, 4, h, w)
    timesteps: Tensor  # (B,), int64
    conditioning: Conditioning  # B rows
    positions: Tensor  # (B, tokens), bool
    masks: Tensor  # (B, h, w), bool


@register("mace")
class MACE(GradientMethod):
    """Refines a concept's surroundings, teaches an adapter not to attend to it, and fuses all into the weights."""

    Config = MACEConfig
    config: MACEConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    group = "kv-xattn"
    saves_what_it_trains = False

    def cost(self, shapes: ModelShapes) -> Cost:
        images = BaseImages(self.config.image_recipe(shapes.image_size), per_concept=self.config.images, encoded=True)
        return Cost(trained_rows=self.config.batch_size, images=images)

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        self.seed, config = task.seed, self.config
        self.findings = config.departure()
        # an optimiser step is of every concept, one batch after another
        accumulate = config.gradient_accumulation_steps * len(task.concepts)
        self.config = config.model_copy(update={"gradient_accumulation_steps": accumulate})
        self.scheduler = DDPMScheduler.from_config(task.base.scheduler_config)
        self.likelihood = importance(self.scheduler.config.num_train_timesteps) if config.importance_sampling else None
        self.data = [self._data(task, concept) for concept in task.concepts]
        self.originals = {name: value.double() for name, value in select(task.base, self.group).items()}
        self.kept = self._kept(task)
        refined = sum((data.sentences.surroundings() for data in self.data), start=Statistics(self.kept, self.kept))
        self.transform = ridge_solve(torch.eye(len(self.kept), device=task.base.device), refined, config.ridge)
        keys_and_values = select(student.modules, self.group)
        student.own(keys_and_values.values())
        with torch.no_grad():
            for name, value in keys_and_values.items():
                value.copy_(self.originals[name] @ self.transform)
        self.maps = CrossAttentionMaps(student)
        rng = generator(task.seed, "mace", "adapters")
        self.adapters = ConceptAdapters(student, [*self.originals], len(self.data), config.rank, rng)

    def batch(self, index: int) -> MACEBatch:
        turn, concept = divmod(index, len(self.data))
        data, size = self.data[concept], self.config.batch_size
        rng = generator(self.seed, "mace", index)
        images = [shuffled(self.config.images, turn * size + i, self.seed, "mace", concept) for i in range(size)]
        rows = [integer(len(data.positions), rng) for _ in images]
        sample = noised(data.images, images, self.scheduler, rng, self.likelihood)
        prompts = data.sentences.conditioning[rows], data.positions[rows]
        return MACEBatch(concept, sample.latents, sample.timesteps, *prompts, data.masks[images])

    def loss(self, student: NoisePredictor, batch: MACEBatch) -> Tensor:
        self.adapters.active = batch.concept
        with self.maps:
            predicted = student(batch.latents, batch.timesteps, batch.conditioning)
        # every trained weight gets a gradient, if of zero, as optimisers and process groups expect
        return attention_loss(list(self.maps.by_layer.values()), batch.positions, batch.masks) + 0.0 * predicted.sum()

    def trained(self, student: Denoiser) -> dict[str, nn.Parameter]:
        return self.adapters.parameters()

    def saved(self, student: Denoiser) -> dict[str, Tensor]:
        moments = torch.stack([data.sentences.moment() for data in self.data])
        of_sentences, key_key, ridge = moments.sum(dim=0), self.kept + moments.sum(dim=0), self.config.ridge
        # kept tokens get their original values, sentences the refined ones and their adapters': maps of the keys
        fusion = ridge_solve(self.transform, Statistics(self.kept + self.transform @ of_sentences, key_key), ridge)
        reads = [ridge_solve(torch.zeros_like(moment), Statistics(moment, key_key), ridge) for moment in moments]
        fused = {name: original @ fusion for name, original in self.originals.items()}
        for name, value in fused.items():
            for (up, down), read in zip(self.adapters.factors(name), reads, strict=True):
                value += up @ (down @ read)
        return {name: value.float() for name, value in fused.items()}

    def _data(self, task: UnlearningTask, concept: Concept) -> Data:
        config = self.config
        found = sentences(task.base, concept, task.concept_set, config.templates, config.captions)
        recipe = config.image_recipe(task.base.spec.image_size)
        images = image_posterior(task.base, recipe, [found.texts[0]] * config.images, task.cache)
        masks = concept_masks(task.base, config, concept, images, found)
        return Data(found, found.concept_tokens(config.pooler), images, masks)

    def _kept(self, task: UnlearningTask) -> Tensor:
        """The weighted second moment of all tokens that are to stay, (d, d)."""
        config, captions = self.config, self.config.general_captions or task.may_see(everyday_captions())
        window = self.data[0].positions.shape[1]
        moment = config.general_weight * window * second_moment(task.base, captions, task.cache, padding=True)
        left = task.erased if task.base.applied is not None else ()  # what the request before left of them is kept
        for prompt in encode(task.base, [each.phrase for each in (*task.retained(), *left)]).values():
            moment = moment + config.retained_weight * prompt.embedding.double().T @ prompt.embedding.double()
        return moment


def attention_loss(maps: list[Tensor], positions: Tensor, masks: Tensor) -> Tensor:
    """The sum over layers of || A[pixels of the mask, tokens of the concept] ||_F, the mean over samples.

    maps: (B, heads, pixels, tokens) of each layer; positions: (B, tokens), bool; masks: (B, h, w), bool.
    """
    norms = []
    for probabilities in maps:
        scale = (masks[0].numel() / probabilities.shape[2]) ** 0.5
        size = [round(side / scale) for side in masks.shape[1:]]
        pixels = interpolate(masks[:, None].float(), size=size).flatten(1) > 0.5
        chosen = probabilities * pixels[:, None, :, None] * positions[:, None, None, :]
        norms.append(chosen.flatten(1).norm(dim=1))
    return torch.stack(norms).sum(dim=0).mean()
