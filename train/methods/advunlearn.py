"""AdvUnlearn: Defensive Unlearning with Adversarial Training (Zhang et al., NeurIPS 2024, arXiv 2405.15234).

    L = || eps*(x_t, te(a, c)) - [ eps*(x_t, 0) - eta (eps*(x_t, c) - eps*(x_t, 0)) ] ||^2
        + gamma || eps*(y_t, te(r)) - eps*(y_t, r) ||^2

The text encoder te is trained, and the UNet eps* stays. a are an adversary's tokens in front of the concept's prompt c,
r prompts that must stay; a prompt without te goes through the frozen encoder. x_t and y_t come from partial denoisings
by the frozen model, guidance 3, under c and under r, stopped before the same step.

    a = argmin || eps*(x_t, te(a, c)) - eps*(x_t, c) ||^2

by Adam (or on the sign of the gradient, `fast`), each of its steps on a state of its own; it is found anew every
`adversary_every` steps, from tokens of the vocabulary. The first `clean_steps` have no adversary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.errors import UserError
from efface.models.adversary import Adversary
from efface.models.conditioning import Conditioning
from efface.models.shapes import ModelShapes
from efface.models.text.embedding_space import check_family, embedding_table
from efface.models.text.text_encoding import encode_prompts, token_ids
from efface.models.text.textual_inversion import frame_before
from efface.models.text_encoder import TextEncoder
from efface.train.data.rollouts import RolloutConfig, Rollouts, Start, State, predictions, rollout_rows
from efface.train.data.timesteps import selected_stops
from efface.train.method import GradientMethod, Policy, Strategy, UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.negative_guidance import esd_target
from efface.train.seeds import generator, integers, normal, shuffled


class AdvUnlearnConfig(RolloutConfig):
    """AdvUnlearn as its authors run it against nudity; their prompts to retain are COCO's objects."""

    group: Literal["te-base", "te-full", "te-attn", "te-mlp", "te-layer0"] = Field(
        "te-base", description="what is trained of the text encoder; authors: all layers and the last norm"
    )
    steps: int = Field(1000, ge=1, description="optimiser steps; authors 1000")
    learning_rate: float = Field(1e-5, gt=0, description="of Adam; authors 1e-5")
    eta: float = Field(1.0, ge=0, description="strength of the negative guidance; authors 1")
    retain_weight: float = Field(0.3, ge=0, description="gamma; authors 0.3")
    retain_batch: int = Field(5, ge=1, description="prompts r of a batch; authors 5")
    retain: tuple[str, ...] | None = Field(
        None, min_length=1, description="prompts r; null: 'a photo of' each retained concept; authors: COCO's objects"
    )
    clean_steps: int = Field(200, ge=0, description="the first steps, without an adversary; authors 200")
    adversary_steps: int = Field(30, ge=0, description="steps of a search; authors 30")
    adversary_tokens: int = Field(1, ge=1, le=60, description="tokens in front of the prompt; authors 1")
    adversary_rate: float = Field(1e-3, gt=0, description="of the adversary's Adam; authors 1e-3")
    adversary_every: int = Field(1, ge=1, description="steps between two searches; authors 1")
    adversary_start: Literal["random", "latest"] = Field(
        "random", description="a search begins with tokens of the vocabulary (authors), or where the last one ended"
    )
    fast: bool = Field(False, description="step by the gradient's sign (the authors' fast variant)")


@dataclass(frozen=True)
class AdvUnlearnBatch:
    """States under the concept, B rows, and under R prompts that stay, and what is to be predicted there."""

    states: State  # B + R rows
    target: Tensor  # (B + R, 4, h, w)
    retained: Tensor  # (R, 77), ids


@register("advunlearn")
class AdvUnlearn(GradientMethod):
    """Trains the text encoder as ESD trains the UNet, against an adversary's tokens, and holds other prompts."""

    Config = AdvUnlearnConfig
    config: AdvUnlearnConfig
    network = "text_encoder"
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "continual"})
    policy: ClassVar[Policy] = "off"

    @property
    def group(self) -> str:
        return self.config.group

    def cost(self, shapes: ModelShapes) -> Cost:
        config, (_, mean) = self.config, rollout_rows(self.config)
        rows, held = config.batch_size, config.retain_batch
        share = (rows + held) / rows
        searched = max(0.0, 1 - config.clean_steps / config.steps) * config.adversary_steps / config.adversary_every
        return Cost(
            trained_rows=rows + held,
            frozen_rows=2 * (rows + held),
            mean_frozen_rows=share * mean + 2 * rows + held + searched * (mean + rows),
            mean_search_rows=searched * rows,
            text_rows=1 + held,
            images=config.selection_images(shapes),
        )

    def prepare(self, task: UnlearningTask, student: TextEncoder) -> None:
        check_family(task.base)
        base, config, (concept,) = task.base, self.config, task.concepts
        self.seed, self.base, self.student, self.denoiser = task.seed, base, student, base.denoiser
        self.concept = encode_prompts(base, [concept.phrase])
        self.plain, self.frame = (frame_before(base, count, concept.phrase) for count in (0, config.adversary_tokens))
        retained = config.retain or _retained(task)
        self.retained, self.retained_ids = encode_prompts(base, retained), token_ids(base, retained)
        self.rollouts = Rollouts(base, config, selected_stops(task, config, config.rollout_steps))
        self.found: Tensor | None = None  # the adversary's tokens, (n, width)

    def before_step(self, step: int) -> None:
        config = self.config
        if step < config.clean_steps or (self.found is not None and step % config.adversary_every):
            return
        if self.found is None or config.adversary_start == "random":
            table = embedding_table(self.base)
            rng = generator(self.seed, "advunlearn", "tokens", step)
            self.found = table[integers(len(table), config.adversary_tokens, rng).to(table.device)]
        adversary = Adversary(self.found, config.adversary_rate)
        for turn in range(config.adversary_steps):
            with torch.no_grad():
                start = self.rollouts.start(generator(self.seed, "advunlearn", "search", step, turn))
                state = self.rollouts.run(self.denoiser, start, self.concept)
                (own,) = predictions(self.denoiser, state, [self.concept])
            hidden = self.student(self.frame.ids, self.embedded(self.student, adversary.value))
            conditioning = Conditioning(hidden).expand(len(own))
            loss = mse_loss(self.denoiser(state.latents, state.timestep, conditioning), own)
            (gradient,) = torch.autograd.grad(loss, [adversary.value])
            adversary.step(gradient.sign() if config.fast else gradient)
        self.found = adversary.value.detach()

    def batch(self, index: int) -> AdvUnlearnBatch:
        config, rng = self.config, generator(self.seed, "advunlearn", index)
        start = self.rollouts.start(rng)
        rows, count = len(start.noise), len(self.retained)
        turns = range(index * config.retain_batch, (index + 1) * config.retain_batch)
        chosen = [shuffled(count, turn, self.seed, "advunlearn", "retained") for turn in turns]
        noise = normal((len(chosen), *start.noise.shape[1:]), rng, start.noise.device)
        conditioning = Conditioning.cat([self.concept.expand(rows), self.retained[chosen]])
        states = self.rollouts.run(
            self.denoiser, Start(torch.cat([start.noise, noise]), start.stop, start.stops), conditioning
        )
        own, uncond = predictions(self.denoiser, State(states.latents[:rows], states.timestep), [
            self.concept, self.rollouts.uncond
        ])  # fmt: skip
        kept = self.denoiser(states.latents[rows:], states.timestep, self.retained[chosen])
        target = torch.cat([esd_target(uncond, own, uncond, config.eta), kept])
        return AdvUnlearnBatch(states, target, self.retained_ids[chosen])

    def loss(self, student: TextEncoder, batch: AdvUnlearnBatch) -> Tensor:
        frame = self.plain if self.found is None else self.frame
        concept = self.embedded(student, self.found)
        # one pass of the encoder, for process groups synchronise gradients once a pass
        embeddings = torch.cat([concept, student.embed(batch.retained)])
        hidden = student(torch.cat([frame.ids, batch.retained]), embeddings)
        rows = len(batch.target) - len(batch.retained)
        conditioning = Conditioning(torch.cat([hidden[:1].expand(rows, -1, -1), hidden[1:]]))
        predicted = self.denoiser(batch.states.latents, batch.states.timestep, conditioning)
        erase, retain = (mse_loss(predicted[part], batch.target[part]) for part in (slice(rows), slice(rows, None)))
        return erase + self.config.retain_weight * retain

    def embedded(self, encoder: TextEncoder, found: Tensor | None) -> Tensor:
        """(1, 77, width): the concept's prompt behind tokens (n, width); None: behind nothing."""
        if found is None:
            return encoder.embed(self.plain.ids)
        words, (start, end) = encoder.embed(self.frame.ids), (1, 1 + len(found))
        return torch.cat([words[:, :start], found[None], words[:, end:]], dim=1)

    def state(self) -> dict[str, Tensor]:
        return {} if self.found is None else {"found": self.found}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self.found = state["found"].to(self.base.device)


def _retained(task: UnlearningTask) -> list[str]:
    """Of the concepts that must stay and are not gone. Raises UserError where there are none."""
    kept = [f"a photo of {other.phrase}" for other in task.retained()]
    if not kept:
        raise UserError(
            f"advunlearn: concept '{task.concepts[0].name}' has no retained concepts: list prompts as retain"
        )
    return kept
