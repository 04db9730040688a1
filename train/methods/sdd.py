"""SDD: Safe self-Distillation Diffusion (Kim et al., 2023, arXiv 2307.05977).

    L = || eps_theta(x_t, c) - sg[ eps_theta(x_t, 0) ] ||^2

theta is the model being edited, on both sides; the right one has no gradient. x_t comes from a partial denoising by the
moving average of theta, guidance 3, under the prompt of all concepts together; after every step

    theta_ema = decay theta_ema + (1 - decay) theta

and that average is the result. So a concept's prediction becomes the empty prompt's, without a push beyond it (ESD with
eta 0 pulls to the frozen original's instead).

Several concepts: in turns, batch by batch. The authors draw t in the 20 timesteps around x_t's own, which it is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.conditions import ConditionConfig, Conditions
from efface.train.data.rollouts import RolloutConfig, Rollouts, State, rollout_rows
from efface.train.data.timesteps import selected_stops
from efface.train.method import GradientMethod, Policy, Strategy, UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.seeds import generator
from efface.train.trainer.ema import MovingAverage


class SDDConfig(RolloutConfig, ConditionConfig):
    """SDD as its authors run it: 1500 steps of AdamW, on the cross-attention."""

    group: Literal["xattn", "noxattn", "selfattn", "notime", "full"] = Field(
        "xattn", description="what is trained; authors: the cross-attention"
    )
    steps: int = Field(1500, ge=1, description="optimiser steps; authors 1500")
    learning_rate: float = Field(1e-5, gt=0, description="learning rate; authors 1e-5")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="torch.optim's; authors AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW; authors 1e-4")
    max_grad_norm: float = Field(1.0, ge=0, description="global L2 norm of the gradient; authors 1, 0: no clipping")
    warmup_steps: int = Field(500, ge=0, description="steps in which the rate rises; authors 500")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the moving average, per step; authors 0.999")


@dataclass(frozen=True)
class SDDBatch:
    """A state of the average's trajectory, its concept, and the student's own prediction for the empty prompt."""

    state: State
    conditioning: Conditioning  # B rows
    target: Tensor  # (B, 4, h, w)


@register("sdd")
class SDD(GradientMethod):
    """Safe self-Distillation: makes a concept's prediction that of the empty prompt, and averages the weights."""

    Config = SDDConfig
    config: SDDConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    policy: ClassVar[Policy] = "on"
    packs: ClassVar[bool] = True

    @property
    def sees_others(self) -> bool:
        return self.config.sees_others

    @property
    def group(self) -> str:
        return self.config.group

    def cost(self, shapes: ModelShapes) -> Cost:
        largest, mean = rollout_rows(self.config)
        rows = self.config.batch_size
        return Cost(rows, max(largest, rows), mean + rows, images=self.config.selection_images(shapes))

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        self.seed, self.student = task.seed, student
        self.average = MovingAverage(self.trained(student), self.config.ema_decay)
        self.conditions = Conditions(task.base, task.concepts, self.config)
        self.together = encode_prompts(task.base, [", ".join(concept.phrase for concept in task.concepts)])
        self.rollouts = Rollouts(task.base, self.config, selected_stops(task, self.config, self.config.rollout_steps))

    def batch(self, index: int) -> SDDBatch:
        rng = generator(self.seed, "sdd", index)
        number = index % len(self.conditions.rows)
        conditioning = self.conditions.of(number, rng)
        start = self.rollouts.start(rng, number)
        with self.average.in_place():
            state = self.rollouts.run(self.student, start, self.together)
        rows = len(state.latents)
        target = self.student(state.latents, state.timestep, self.rollouts.uncond.expand(rows))
        return SDDBatch(state, conditioning.expand(rows), target)

    def loss(self, student: NoisePredictor, batch: SDDBatch) -> Tensor:
        return mse_loss(student(batch.state.latents, batch.state.timestep, batch.conditioning), batch.target)

    def after_step(self, step: int) -> None:
        self.average.update()

    def state(self) -> dict[str, Tensor]:
        return self.average.average

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.average.restore(state)

    def saved(self, student: Denoiser) -> dict[str, Tensor]:
        return self.average.average
