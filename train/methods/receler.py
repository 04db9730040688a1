"""Receler: Reliable Concept Erasing via Lightweight Erasers (Huang et al., ECCV 2024, arXiv 2311.17717).

    L = || eps_E(x_t, c') - [ eps*(x_t, 0) - eta (eps*(x_t, c) - eps*(x_t, 0)) ] ||^2
        + w mean over layers l of sum_p (1 - M_p) mean_d E_l(h)_pd^2 / sum_p (1 - M_p)

eps* is the frozen original, eps_E the same with an eraser E_l behind every cross-attention
(`models/receler_erasers.py`); they alone are trained. M is where the concept is: the original's cross-attention to its
tokens, of the layers a quarter as wide as the latents, averaged, brought to [0, 1] and cut at a threshold. Outside
of it the erasers are to add nothing.

c' is c with an adversary's soft prompt in the places after its words, in the output of the text encoder:

    a <- Adam on || eps_E(x_t, c'(a)) - eps*(x_t, c) ||^2

so that other ways of asking for the concept are erased too. It goes on from step to step; before each it takes
`adversary_steps` of its own at the step's first x_t. x_t comes from a partial denoising under c by the erased model,
guidance 3.

Erasers are no change of weights: the delta is a hook, at full strength for every prompt. Several concepts: one drawn
for each batch, each with an adversary of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from efface.errors import UserError
from efface.models.adversary import Adversary, restore_all, states_of
from efface.models.attention_maps import CrossAttentionMaps, concept_region
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.hooks.receler import RecelerHookConfig
from efface.models.noise_predictor import NoisePredictor
from efface.models.receler_erasers import add_erasers, eraser_parameters, region_loss
from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import encode_prompts, last_subject_token
from efface.train.data.rollouts import RolloutConfig, Rollouts, State, predictions, rollout_rows
from efface.train.data.timesteps import selected_stops
from efface.train.method import GradientMethod, UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.negative_guidance import esd_target
from efface.train.seeds import choice, generator


class RecelerConfig(RolloutConfig):
    """Receler as its authors run it: 500 steps, each after 50 of the adversary."""

    steps: int = Field(500, ge=1, description="optimiser steps; authors 500")
    learning_rate: float = Field(3e-4, gt=0, description="of Adam on the erasers; authors 3e-4")
    eta: float = Field(1.0, ge=0, description="strength of the negative guidance; authors 1")
    rank: int = Field(128, ge=1, description="width of the erasers' bottleneck; authors 128")
    region_weight: float = Field(0.1, ge=0, description="w, of what erasers do elsewhere; authors 0.1")
    mask_threshold: float = Field(0.1, ge=0, le=1, description="attention from which the concept is there; authors 0.1")
    adversary_steps: int = Field(50, ge=0, description="of the adversary, before each optimiser step; authors 50")
    adversary_tokens: int = Field(16, ge=1, description="places of the soft prompt; authors 16")
    adversary_learning_rate: float = Field(0.1, gt=0, description="of Adam on the soft prompt; authors 0.1")
    adversary_weight_decay: float = Field(0.1, ge=0, description="L2 decay in that Adam; authors 0.1")


@dataclass(frozen=True)
class Scene:
    """A state of the erased model's trajectory under a concept, and what the frozen original says there; B latents."""

    number: int  # of the concept
    state: State
    original: Tensor  # (B, 4, h, w), for the concept
    target: Tensor  # (B, 4, h, w)
    elsewhere: dict[int, Tensor]  # pixels of a layer -> (B, pixels), bool: where the concept is not


@dataclass(frozen=True)
class RecelerBatch:
    scene: Scene
    conditioning: Conditioning  # B rows, with the adversary's tokens


@register("receler")
class Receler(GradientMethod):
    """Lightweight erasers, trained against soft prompts, that act where the concept is."""

    Config = RecelerConfig
    config: RecelerConfig
    strategies = frozenset({"single", "multi"})
    policy = "on"
    delta_kind = "hook"

    @property
    def group(self) -> str:
        return "none"

    def cost(self, shapes: ModelShapes) -> Cost:
        largest, mean = rollout_rows(self.config)
        rows = self.config.batch_size
        searching = rows * self.config.adversary_steps
        images = self.config.selection_images(shapes)
        return Cost(rows, max(largest, 2 * rows), mean + 2 * rows, mean_search_rows=searching, images=images)

    def add_adapters(self, student: Denoiser, seed: int) -> None:
        self.erasers = add_erasers(student, self.config.rank, generator(seed, "receler", "erasers"))

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        config, base = self.config, task.base
        self.seed, self.student, self.teacher = task.seed, student, base.denoiser
        self.rollouts = Rollouts(base, config, selected_stops(task, config, config.rollout_steps))
        self.outputs: list[Tensor] | None = None  # of the erasers, while a loss is computed
        for eraser in self.erasers.values():
            eraser.register_forward_hook(self._keep)
        phrases = [concept.phrase for concept in task.concepts]
        self.concepts = encode_prompts(base, phrases)
        self.ends = [last + 1 for last in last_subject_token(base, phrases)]
        _, window, width = self.concepts.encoder_hidden_states.shape
        if max(self.ends) + config.adversary_tokens > window:
            raise UserError(
                f"receler: adversary_tokens: {config.adversary_tokens} do not fit behind the concept's words"
            )
        self.adversaries = {}
        for number in range(len(phrases)):
            start = torch.rand(config.adversary_tokens, width, generator=generator(task.seed, "receler", number))
            how = (config.adversary_learning_rate, config.adversary_weight_decay)
            self.adversaries[str(number)] = Adversary(start.to(base.device), *how)
        self.known: dict[int, Scene] = {}

    def batch(self, index: int) -> RecelerBatch:
        scene = self.known.pop(index, None) or self._scene(index)
        return RecelerBatch(scene, self._conditioning(scene).expand(len(scene.target)))

    def loss(self, student: NoisePredictor, batch: RecelerBatch) -> Tensor:
        outputs: list[Tensor] = []
        self.outputs = outputs
        predicted = student(batch.scene.state.latents, batch.scene.state.timestep, batch.conditioning)
        self.outputs = None
        loss = mse_loss(predicted, batch.scene.target)
        return loss + self.config.region_weight * region_loss(outputs, batch.scene.elsewhere)

    def before_step(self, step: int) -> None:
        """The adversary's steps, at the first state of the step, which the loss then has too."""
        index = step * self.config.gradient_accumulation_steps
        with torch.no_grad():
            scene = self._scene(index)
        self.known = {index: scene}
        for _ in range(self.config.adversary_steps):
            conditioning = self._conditioning(scene).expand(len(scene.target))
            predicted = self.student(scene.state.latents, scene.state.timestep, conditioning)
            self.adversaries[str(scene.number)].maximize(-mse_loss(predicted, scene.original))

    def state(self) -> dict[str, Tensor]:
        return states_of(self.adversaries)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        restore_all(self.adversaries, state)

    def trained(self, student: Denoiser) -> dict[str, nn.Parameter]:
        return eraser_parameters(self.erasers)

    def hook_config(self, task: UnlearningTask) -> RecelerHookConfig:
        return RecelerHookConfig(prompts=tuple(concept.phrase for concept in task.concepts))

    def _keep(self, eraser: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.outputs is not None:
            self.outputs.append(output)

    def _conditioning(self, scene: Scene) -> Conditioning:
        """The concept with the soft prompt after its words, one row."""
        row = self.concepts[scene.number]
        soft, end = self.adversaries[str(scene.number)].value, self.ends[scene.number]
        states = row.encoder_hidden_states
        return Conditioning(torch.cat([states[:, :end], soft[None], states[:, end + len(soft) :]], dim=1), row.added)

    def _scene(self, index: int) -> Scene:
        rng = generator(self.seed, "receler", index)
        number = choice(range(len(self.concepts)), rng)
        concept = self.concepts[number]
        state = self.rollouts.run(self.student, self.rollouts.start(rng, number), concept)
        maps = CrossAttentionMaps(self.teacher)
        with maps:
            original, uncond = predictions(self.teacher, state, [concept, self.rollouts.uncond])
        maps.close()
        target = esd_target(uncond, original, uncond, self.config.eta)
        own = [layer[: len(target)] for layer in maps.by_layer.values()]
        words = range(1, self.ends[number])
        side, threshold = state.latents.shape[-1], self.config.mask_threshold
        sizes = {layer.shape[2] for layer in own}
        elsewhere = {pixels: ~concept_region(own, words, pixels, side, threshold) for pixels in sizes}
        return Scene(number, state, original, target, elsewhere)
