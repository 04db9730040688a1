"""Roll-outs: latents that a model has denoised part of the way from noise, where fine-tuners compare predictions.

x_t is the state *before* step i of a DDIM trajectory with guidance, and t = timesteps[i], so x_t is exactly as noisy
as t says. i is uniform over the steps, or over those in which the concept shows (`train/data/timesteps.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor, denoise_past, partial_denoise
from efface.models.noise_scheduler import make_scheduler
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.shared_rollouts import SharedRolloutConfig, SharedRollouts, States, rollouts_share
from efface.train.data.timesteps import TimestepConfig
from efface.train.method import GradientConfig
from efface.train.seeds import choice, integer, normal

if TYPE_CHECKING:
    from efface.train.data.rollout_store import FrozenStates


class TrajectoryConfig(GradientConfig):
    """How trajectories are rolled out."""

    guidance_scale: float = Field(3.0, ge=1, description="classifier-free guidance of the roll-outs; papers 3")
    rollout_steps: int = Field(50, ge=1, le=1000, description="inference steps of a whole trajectory; papers 50")


class RolloutConfig(TrajectoryConfig, TimestepConfig):
    """The settings of a gradient method that trains on roll-outs."""


@dataclass(frozen=True)
class Start:
    """Where a roll-out starts and stops."""

    noise: Tensor  # (B, 4, h, w)
    stop: int  # the step before which it stops
    stops: Sequence[int] = ()  # those before which it may

    def repeated(self, count: int) -> "Start":
        """The same start for `count` roll-outs, one after another: of count B rows."""
        return Start(self.noise.repeat(count, 1, 1, 1), self.stop, self.stops)


@dataclass(frozen=True)
class State:
    """A stopped trajectory."""

    latents: Tensor  # (B, 4, h, w), fp32
    timestep: Tensor  # scalar, int64

    @classmethod
    def of(cls, states: "States | FrozenStates", index: int) -> "State":
        """One of a trajectory's states."""
        return cls(states.latents[index], states.timesteps[index])

    def at(self, timestep: int) -> "State":
        """The same latents, taken for those of another timestep."""
        return State(self.latents, torch.full_like(self.timestep, timestep))

    def chunk(self, count: int) -> "list[State]":
        """As many states of the same timestep, each of as many rows."""
        return [State(latents, self.timestep) for latents in self.latents.chunk(count)]


class Rollouts:
    """Roll-outs of one job, by the model given for each."""

    def __init__(
        self,
        base: Base,
        config: TrajectoryConfig,
        stops: Sequence[Sequence[int]] | None = None,
        sizes: Sequence[int] | None = None,
        scheduler: str = "ddim",
        offset: int | None = None,
    ) -> None:
        """stops: of each concept the steps before which its roll-outs may stop; None: all, whatever is rolled out.

        sizes: pixels that height and width are drawn from; None: the base's own.
        offset: what the scheduler adds to each timestep; None: the base's own.
        """
        self.guidance_scale = config.guidance_scale
        # DDIM would clip the predicted image to [-1, 1], which is no bound for latents; `make_scheduler` forbids it
        shifted = base.scheduler_config if offset is None else {**base.scheduler_config, "steps_offset": offset}
        self.scheduler = make_scheduler(scheduler, shifted, config.rollout_steps)
        self.stops = [list(each) for each in stops or [range(config.rollout_steps)]]
        self.rows, (self.channels, side, _) = config.batch_size, base.latent_shape
        self.sides = [size * side // base.spec.image_size for size in sizes or [base.spec.image_size]]
        self.uncond = encode_prompts(base, [""])

    def start(self, rng: torch.Generator, concept: int = 0) -> Start:
        """Of a roll-out that concept 0, 1, … learns from."""
        stops = self.stops[concept]
        stop = stops[integer(len(stops), rng)]
        shape = (self.rows, self.channels, choice(self.sides, rng), choice(self.sides, rng))
        return Start(normal(shape, rng, self.uncond.device), stop, stops)

    def run(self, predict: NoisePredictor, start: Start, conditioning: Conditioning) -> State:
        """From `start` under one row for all, or a row for each latent."""
        latents, timestep = partial_denoise(
            predict, self.scheduler, conditioning, self.uncond, start.noise, self.guidance_scale, start.stop
        )
        return State(latents, timestep.to(latents.device))

    def run_past(
        self, predict: NoisePredictor, start: Start, conditioning: Conditioning, stops: Sequence[int]
    ) -> States:
        """The same, past several stops."""
        found = denoise_past(
            predict, self.scheduler, conditioning, self.uncond, start.noise, self.guidance_scale, stops
        )
        latents, timesteps = zip(*found, strict=True)
        return States(torch.stack(latents), torch.stack(timesteps).to(latents[0].device))

    def shared(
        self, shared: SharedRollouts, index: int, predict: NoisePredictor, start: Start, conditioning: Conditioning
    ) -> tuple[State, int]:
        """What batch `index` learns from, of a trajectory that others may share, and the step before which it stops."""
        stops, number = shared.stops(index, start.stop, start.stops), shared.state_index(index)
        states = shared.states(index, lambda: self.run_past(predict, start, conditioning, stops))
        return State.of(states, number), stops[number]


def predictions(predict: NoisePredictor, state: State, conditions: Sequence[Conditioning]) -> tuple[Tensor, ...]:
    """Of the same latents under each condition (one row, or B), in one forward pass: each (B, 4, h, w)."""
    together = Conditioning.cat([condition.expand(len(state.latents)) for condition in conditions])
    latents = state.latents.repeat(len(conditions), 1, 1, 1)
    return tuple(predict(latents, state.timestep, together).chunk(len(conditions)))


def authors_timestep(stop: int, steps: int) -> int:
    """Where the code of SPM, and FADE after it, predicts at latents stopped before one of `steps` DDIM steps."""
    return 999 - 1000 * stop // steps


def rollout_rows(config: TrajectoryConfig, rollouts: int = 1, first: int = 0) -> tuple[int, float]:
    """Rows of the largest pass of a batch's roll-outs, and of all their passes on average, for `Cost`.

    first: the first step before which one may stop.
    """
    rows = rollouts * config.batch_size * (2 if config.guidance_scale > 1 else 1)
    largest, stops = (rows if config.rollout_steps > 1 else 0), config.rollout_steps - first
    replayed = config if isinstance(config, SharedRolloutConfig) else None
    return largest, rows * (rollouts_share(replayed, stops, first) if replayed else first + (stops - 1) / 2)
