"""S-GRACE: semantics-guided robust adversarial concept erasure of the text encoder (ECCV 2026, arXiv 2510.27285).

    L = 1 + mean cos( f(z), f*(c) ) + w_sim ( 1 - mean cos( f(z), f(z)_0 ) )
        + w_param sum_p mean |p - p*| + w_anchor mean ( te(r) - te*(r) )^2

f is the text encoder's state at a prompt's end, c the concept's phrase, and r words that appear with the concept but
are not it, in templates. z are soft prompts (`train/soft_prompts.py`), which an adversary finds against the encoder as
it is at the start of each round of `round_steps` steps, from mixes of words that describe the concept; f(z)_0 is what
they were then. The denoiser is needed by the adversary alone, for one noised state x_t of the concept. x_t is as noisy
as t says; the authors' is cleaner, for they denoise for t thousandths of the steps instead of down to t.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from efface.errors import UserError
from efface.models.noise_predictor import partial_denoise
from efface.models.noise_scheduler import make_scheduler
from efface.models.parameter_groups import select
from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import encode_prompts, token_ids
from efface.models.text_encoder import TextEncoder
from efface.train.method import GradientConfig, GradientMethod, Strategy, UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.seeds import generator, integer, normal, shuffled
from efface.train.soft_prompts import SoftPrompts, SoftPromptSearch

TEMPLATES = ("a photo of {}", "a picture of {}", "a image of {}")
STATE_TEMPLATES = {"style": "a picture of {}", "nsfw": "{}"}
"""By the concept's kind, for x_t; of others "a photo of {}"."""


class SGRACEConfig(GradientConfig):
    """The authors' settings for a style; their lists of words come from a language model, ours from the concept set."""

    steps: int = Field(200, ge=1, description="optimiser steps; authors 4 rounds of 50")
    round_steps: int = Field(50, ge=1, description="steps between two searches of the adversary; authors 50")
    learning_rate: float = Field(1e-5, gt=0, description="of Adam; authors 1e-5")
    related: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="words that describe the concept; null: phrase and aliases; authors 50",
    )
    unrelated: tuple[str, ...] | None = Field(
        None, min_length=1, description="words beside the concept that stay; null: retained concepts; authors 50"
    )
    state: Literal["end", "padding"] = Field(
        "end", description="f: the state at a prompt's end (authors), or the mean of that and of the padding after it"
    )
    soft_prompts: int = Field(8, ge=1, description="soft prompts of the adversary; authors 8")
    words: tuple[int, int] = Field((3, 20), description="least and most words in a soft prompt's start; authors 3, 20")
    redraw: float = Field(
        0.15, ge=0, le=1, description="chance of a new start in later rounds; authors 0.15, nudity 0.8"
    )
    adversary_steps: int = Field(10, ge=0, description="steps of a search; authors 10")
    adversary_rate: float = Field(5e-3, gt=0, description="of the adversary's Adam; authors 5e-3")
    target_weight: float = Field(0.1, ge=0, description="w_target; authors 0.1")
    similarity_weight: float = Field(1.2, ge=0, description="w_sim; authors 1.2")
    parameter_weight: float = Field(0.2, ge=0, description="w_param; authors 0.2, nudity 0.3")
    anchor_weight: float = Field(1.0, ge=0, description="w_anchor; authors 1, nudity 1.2")
    anchors: int = Field(8, ge=1, description="words r of a step; authors 8, nudity 16")
    denoising_steps: int = Field(50, ge=1, description="DDIM steps of a whole trajectory; authors 50")
    guidance_scale: float = Field(3.0, ge=1, description="classifier-free guidance of x_t; authors 3")
    timesteps: tuple[float, float] = Field(
        (0.75, 0.95), description="t as a share of the schedule's timesteps, from and to; authors 0.75 to 0.95"
    )


@register("sgrace")
class SGRACE(GradientMethod):
    """Turns the text encoder away from a concept, against soft prompts that an adversary keeps finding."""

    Config = SGRACEConfig
    config: SGRACEConfig
    network = "text_encoder"
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "continual"})
    group = "te-base"

    def cost(self, shapes: ModelShapes) -> Cost:
        config = self.config
        searched = config.soft_prompts * config.adversary_steps / config.round_steps
        return Cost(text_rows=config.soft_prompts + config.anchors, frozen_rows=2, mean_search_rows=searched)

    def prepare(self, task: UnlearningTask, student: TextEncoder) -> None:
        self.seed, self.base, self.student = task.seed, task.base, student
        (concept,) = task.concepts
        self.teacher = TextEncoder(task.base.text_encoder)
        self.related = self.config.related or (concept.phrase, *concept.aliases)
        self.unrelated = self.config.unrelated or tuple(other.phrase for other in task.retained())
        if not self.unrelated:
            raise UserError(f"sgrace: concept '{concept.name}' has no retained concepts, so unrelated must name words")
        trained = select(student.modules, self.group)
        self.weights = [(value, value.detach().clone()) for value in trained.values()]
        with torch.no_grad():
            self.target = SoftPrompts.of(task.base, [concept.phrase]).features(self.teacher, self.config.state)  # f*(c)
        self.adversary = self.noised(STATE_TEMPLATES.get(concept.kind, "a photo of {}").format(concept.phrase))
        self.prompts: SoftPrompts | None = None

    def noised(self, prompt: str) -> SoftPromptSearch:
        """With an x_t of the prompt."""
        config, base, rng = self.config, self.base, generator(self.seed, "sgrace", "state")
        noise = normal((1, *base.latent_shape), rng, base.device)
        scheduler = make_scheduler("ddim", base.scheduler_config, config.denoising_steps)
        low, high = (share * scheduler.config.num_train_timesteps for share in config.timesteps)
        stops = [i for i, t in enumerate(scheduler.timesteps) if low <= t < high] or [0]
        stop = stops[integer(len(stops), rng)]
        cond, uncond = (encode_prompts(base, [text]) for text in (prompt, ""))
        found = partial_denoise(base.denoiser, scheduler, cond, uncond, noise, config.guidance_scale, stop)
        return SoftPromptSearch(
            base, found[0], found[1].to(base.device), noise, self.target, config.target_weight, config.state
        )

    def before_step(self, step: int) -> None:
        turn, place = divmod(step, self.config.round_steps)
        if place == 0:
            config, started = self.config, self.started(turn)
            found = self.adversary.run(self.student, started, config.adversary_steps, config.adversary_rate)
            with torch.no_grad():
                self.before = found.features(self.student, config.state)  # f(z)_0
            self.prompts = found

    def started(self, turn: int) -> SoftPrompts:
        """The prompts that round 0, 1, … starts from: those of the round before, and some new ones."""
        rng, (least, most) = generator(self.seed, "sgrace", "start", turn), self.config.words
        texts = [] if turn else [self.related[0]]
        while len(texts) < self.config.soft_prompts:
            count = min(len(self.related), least + integer(most - least + 1, rng))
            texts.append(",".join(self.related[i] for i in torch.randperm(len(self.related), generator=rng)[:count]))
        fresh = SoftPrompts.of(self.base, texts)
        if self.prompts is None or turn == 0:
            return fresh
        return self.prompts.with_new(fresh, torch.rand(len(texts), generator=rng) < self.config.redraw)

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Ids of the words r, (anchors, 77), and te*(r)."""
        rng, count = generator(self.seed, "sgrace", "anchors", index), min(self.config.anchors, len(self.unrelated))
        turns = range(index * count, (index + 1) * count)
        words = [self.unrelated[shuffled(len(self.unrelated), turn, self.seed, "sgrace")] for turn in turns]
        ids = token_ids(self.base, [TEMPLATES[integer(len(TEMPLATES), rng)].format(word) for word in words])
        return ids, self.teacher(ids)

    def loss(self, student: TextEncoder, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert self.prompts is not None
        (ids, held), config, found = batch, self.config, self.prompts.features(student, self.config.state)
        away = 1 + cosine_similarity(found, self.target).mean()
        same = 1 - cosine_similarity(found, self.before).mean()
        moved = torch.stack([(value - before).abs().mean() for value, before in self.weights]).sum()
        kept = mse_loss(student(ids), held)
        return away + config.similarity_weight * same + config.parameter_weight * moved + config.anchor_weight * kept

    def selection_loss(self, student: TextEncoder, index: int) -> Tensor:
        if self.prompts is None:
            self.before_step(0)
        return super().selection_loss(student, index)

    def state(self) -> dict[str, Tensor]:
        return {} if self.prompts is None else {**self.prompts.tensors(), "before": self.before}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self.prompts = SoftPrompts.read(state, self.base.device)
            self.before = state["before"].to(self.base.device)
