"""Shared roll-outs: several optimiser steps learn from one trajectory, each from a state of its own.

A trajectory is most of what a step costs: 25 guided passes on average of 50, for one with a gradient. With
`steps_per_rollout: R` it is rolled out every R steps, past R stops, for about 2 / (R + 1) of what R of them take. Each
stop is as likely as any other, as without; but states of one trajectory share its noise and its prompt, and where the
edited model rolls out, they are of the model that it was up to R - 1 steps before. So another recipe: the field is part
of the config, and so of the job's id and of the delta's provenance.

What a trajectory left is part of the checkpoint, for the model that made it is gone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from efface.train.collectives import all_gather
from efface.train.method import GradientConfig
from efface.train.seeds import generator


class SharedRolloutConfig(GradientConfig):
    """The setting of a method that can do so."""

    steps_per_rollout: int = Field(
        1,
        ge=1,
        description="optimiser steps that learn from one trajectory, each from another of its states, before the next "
        "is rolled out; 1: each step from its own (papers)",
    )


@dataclass(frozen=True)
class States:
    """What a trajectory leaves: R states of B latents."""

    latents: Tensor  # (R, B, 4, h, w), fp32
    timesteps: Tensor  # (R,)


class SharedRollouts:
    """Which trajectory a batch learns from, and what is held of the last ones."""

    def __init__(self, config: SharedRolloutConfig, seed: int) -> None:
        self.steps, self.seed = config.steps_per_rollout, seed
        self.slots = config.gradient_accumulation_steps
        self.held: dict[int, tuple[int, States]] = {}
        """By slot in the optimiser step: the batch whose draws it was made of, and its states."""

    def source(self, index: int) -> int:
        """The batch whose draws make the trajectory that batch `index` learns from; where none is shared itself."""
        step, slot = divmod(index, self.slots)
        return (step - step % self.steps) * self.slots + slot

    def state_index(self, index: int) -> int:
        """Which of its states batch `index` learns from."""
        return index // self.slots % self.steps

    def stops(self, index: int, first: int, allowed: Sequence[int]) -> list[int]:
        """Where the trajectory of a batch is looked at, in the order of the batches: `first`, then others allowed."""
        if self.steps == 1:
            return [first]
        order = torch.randperm(len(allowed), generator=generator(self.seed, "stops", self.source(index))).tolist()
        others = [allowed[i] for i in order if allowed[i] != first]
        return [([first, *others])[i % len(allowed)] for i in range(self.steps)]

    def states(self, index: int, roll_out: Callable[[], States]) -> States:
        """Of the trajectory of batch `index`: rolled out now where that is due, or those held."""
        if self.steps == 1:
            return roll_out()
        slot, source = index % self.slots, self.source(index)
        if slot not in self.held or self.held[slot][0] != source:
            new = roll_out()
            # every process of a group holds all of them, as any may write the checkpoint
            for new_slot, latents, timesteps in all_gather((slot, new.latents.cpu(), new.timesteps.cpu())):
                device = new.latents.device
                own = source - slot + new_slot
                self.held[new_slot] = own, States(latents.to(device), timesteps.to(device))
            self.held[slot] = source, new
        return self.held[slot][1]

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        parts = {}
        for slot, (source, states) in self.held.items():
            parts[f"{slot}/source"] = torch.tensor([float(source)])
            parts[f"{slot}/latents"], parts[f"{slot}/timesteps"] = states.latents, states.timesteps.float()
        return parts

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        for name, source in state.items():
            slot, _, part = name.partition("/")
            if part == "source":
                timesteps = state[f"{slot}/timesteps"]
                timesteps = timesteps.long() if bool((timesteps == timesteps.round()).all()) else timesteps
                latents = state[f"{slot}/latents"]
                self.held[int(slot)] = int(source), States(latents.to(device), timesteps.to(device))


def rollouts_share(config: SharedRolloutConfig, stops: int, first: int = 0) -> float:
    """Passes of a batch's roll-outs, on average, where a trajectory stops before one of `stops` steps from `first` on.

    The last of R different stops, each as likely as any other, comes on average before step R (n + 1) / (R + 1) - 1.
    """
    different = min(config.steps_per_rollout, stops)
    return (first - 1 + different * (stops + 1) / (different + 1)) / config.steps_per_rollout
