"""Erasers that look for a concept as they go, in a vocabulary: what EAP and AGE share.

    L = || x0_theta(x_t, c) - x0_target ||^2 + lambda || x0_theta(x'_t, a(pi)) - x0*(x'_t, a(pi)) ||^2

x0(x_t, c) = (x_t - sqrt(1 - alpha_t) eps(x_t, c)) / sqrt(alpha_t) is the image that a prediction means, alpha_t the
product of the schedule: so the squared error of the noise counts (1 - alpha_t) / alpha_t times, most where there is
most noise. a(pi) is the concept found (`train/data/concept_search.py`). x_t and x'_t come from partial denoisings of
one noise by the model being edited, guidance 3, under c and under a(pi); theta* is the frozen original.

The weights theta and pi are moved in turns, theta first; pi climbs the second term. Several concepts: one is drawn for
each batch, each with a vocabulary and a pi of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.adversary import Adversary, restore_all, states_of
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.train.data.concept_search import ConceptSearch, SearchConfig
from efface.train.data.conditions import ConditionConfig, Conditions
from efface.train.data.rollouts import RolloutConfig, Rollouts, Start, State, predictions, rollout_rows
from efface.train.data.timesteps import selected_stops
from efface.train.data.vocabulary import candidates
from efface.train.method import GradientMethod, Policy, Strategy, UnlearningTask
from efface.train.method_cost import Cost
from efface.train.seeds import choice, generator


class SearchingConfig(RolloutConfig, ConditionConfig, SearchConfig):
    """As the authors of EAP and AGE run them on objects."""

    group: Literal["xattn", "noxattn", "selfattn", "kv-xattn", "notime", "full"] = Field(
        "xattn", description="what is trained; authors: the cross-attention, for nudity all but it (noxattn)"
    )
    steps: int = Field(1000, ge=1, description="steps of the weights, and as many of pi; authors 1000 of each")
    learning_rate: float = Field(1e-5, gt=0, description="of Adam on the weights; authors 1e-5")
    eta: float = Field(1.0, ge=0, description="strength of the negative guidance; authors 1")
    preserve_weight: float = Field(1.0, ge=0, description="lambda, of the second term; authors 1")


@dataclass(frozen=True)
class SearchingBatch:
    """States under the concept and under the concept found, B latents each, and what should be predicted there."""

    erased: State
    concept: Conditioning  # B rows
    target: Tensor  # (B, 4, h, w), a noise prediction
    kept: State
    found: Conditioning  # B rows
    original: Tensor  # (B, 4, h, w), the frozen original's prediction of `kept` for the concept found


class SearchingMethod(GradientMethod):
    """A method says what its target is; all else is here."""

    config: SearchingConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    policy: ClassVar[Policy] = "on"

    @property
    def group(self) -> str:
        return self.config.group

    def target(self, erased: State, concept: Conditioning, found: Conditioning) -> Tensor:
        """(B, 4, h, w), a noise prediction: what the concept's should become."""
        raise NotImplementedError

    def cost(self, shapes: ModelShapes) -> Cost:
        rows = self.config.batch_size
        largest, mean = rollout_rows(self.config, rollouts=2)
        _, searching = rollout_rows(self.config)
        return Cost(
            trained_rows=2 * rows,
            frozen_rows=max(largest, 2 * rows),
            mean_frozen_rows=mean + 3 * rows,
            # the pass that pi climbs, and a third each of the passes without gradient before it
            mean_search_rows=rows + (searching + rows) / 3,
            images=self.config.selection_images(shapes),
        )

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        self.seed, self.student, self.teacher = task.seed, student, task.base.denoiser
        self.conditions = Conditions(task.base, task.concepts, self.config)
        found = [candidates(task, concept, self.config) for concept in task.concepts]
        self.searches = [ConceptSearch(rows, self.config) for _, rows in found]
        self.rollouts = Rollouts(task.base, self.config, selected_stops(task, self.config, self.config.rollout_steps))
        self.scheduler = DDPMScheduler.from_config(task.base.scheduler_config)

    def batch(self, index: int) -> SearchingBatch:
        rng = generator(self.seed, self.name, index)
        concept, found, start = self._draw(rng)
        rows = len(start.noise)
        both = Conditioning.cat([concept, found]).repeat_interleave(rows)
        erased, kept = self.rollouts.run(self.student, start.repeated(2), both).chunk(2)
        target = self.target(erased, concept, found)
        (original,) = predictions(self.teacher, kept, [found])
        return SearchingBatch(erased, concept.expand(rows), target, kept, found.expand(rows), original)

    def loss(self, student: NoisePredictor, batch: SearchingBatch) -> Tensor:
        latents = torch.cat([batch.erased.latents, batch.kept.latents])
        conditioning = Conditioning.cat([batch.concept, batch.found])
        erased, kept = student(latents, batch.erased.timestep, conditioning).chunk(2)
        loss = mse_loss(erased, batch.target) + self.config.preserve_weight * mse_loss(kept, batch.original)
        return image_weight(self.scheduler, batch.erased.timestep) * loss

    def before_step(self, step: int) -> None:
        """Move pi to the candidates whose images change most; the weights are moved once before the first time."""
        if step == 0:
            return
        rng = generator(self.seed, self.name, "search", step)
        chosen = choice(range(len(self.searches)), rng)
        found = self.searches[chosen].draw(rng)
        with torch.no_grad():
            kept = self.rollouts.run(self.student, self.rollouts.start(rng, chosen), found)
            (original,) = predictions(self.teacher, kept, [found])
        changed = self.student(kept.latents, kept.timestep, found.expand(len(kept.latents)))
        self.searches[chosen].adversary.maximize(
            image_weight(self.scheduler, kept.timestep) * mse_loss(changed, original)
        )

    def state(self) -> dict[str, Tensor]:
        return states_of(self._adversaries)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        restore_all(self._adversaries, state)

    @property
    def _adversaries(self) -> dict[str, Adversary]:
        return {str(number): search.adversary for number, search in enumerate(self.searches)}

    def _draw(self, rng: torch.Generator) -> tuple[Conditioning, Conditioning, Start]:
        """A concept and the concept found for it, one row each, and where their roll-outs start."""
        chosen = choice(range(len(self.searches)), rng)
        concept, found = self.conditions.of(chosen, rng), self.searches[chosen].draw(rng)
        return concept, found, self.rollouts.start(rng, chosen)


def image_weight(scheduler: DDPMScheduler, timestep: Tensor) -> float:
    """The squared difference of images, x_0, that a squared difference of 1 in predictions means at a timestep."""
    kept = float(scheduler.alphas_cumprod[int(timestep)].double())
    return 1 - kept if scheduler.config.prediction_type == "v_prediction" else (1 - kept) / kept
