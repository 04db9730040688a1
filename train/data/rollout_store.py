"""Trajectories of the frozen model, stored by what decides them: whoever asks for the same finds it.

A state x_t of a guided trajectory has both of the frozen model's predictions there, eps(x_t, c) and eps(x_t, 0), which
are what a teacher is asked for. So a method that rolls out with the frozen model (`policy` off) needs nothing of it
once the trajectory is stored, and the variants of a campaign, which differ in rate, strength or weights, share it.

The key hashes the model with all that is put in place of it, scheduler, guidance, precision, noise, conditioning, and
where the trajectory is looked at. The store is a folder of a run's cache and holds so many bytes; what was used least
lately goes first.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from operator import itemgetter
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from efface.errors import StorageError
from efface.files import content_id, is_remote, write_atomic
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor
from efface.plain_files import check_plain
from efface.train.data.rollouts import Rollouts, Start

UNCHECKED = 1 / 16
"""Of the bytes that a store may hold, how many a writer adds before it looks whether there is too much. It looks after
its first trajectory and at its end, too, so that several writers are over the bound by no more than a share each."""


class RolloutStore:
    """A folder of trajectories."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._unchecked = float("inf")

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put under the key; None if it is not there, or damaged."""
        path = self._path(key)
        try:
            check_plain(path)
            found = safetensors.torch.load(path.read_bytes())
            if not is_remote(path):  # in a bucket nothing says when it was used: what is oldest goes first
                os.utime(path)
        except (OSError, SafetensorError):
            return None
        return found

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """A store that cannot be written costs time only."""
        with suppress(StorageError, OSError):
            content = safetensors.torch.save(tensors)
            write_atomic(self._path(key), content)
            self._unchecked += len(content)
            if self._unchecked >= self.most_bytes * UNCHECKED:
                self.shrink()

    def close(self) -> None:
        """Leave no more than the store may hold."""
        with suppress(StorageError, OSError):
            self.shrink()

    def shrink(self) -> None:
        """Remove what was used least lately, down to the bytes that it may hold."""
        held = sorted(filter(None, map(_held, self.folder.iterdir())), key=itemgetter(0, 1))
        self._unchecked = 0
        excess = sum(size for _, size, _ in held) - self.most_bytes
        for _, size, path in held:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _held(path: Path) -> tuple[float, int, Path] | None:
    """When it was used last, its bytes and its path; None where another job has just removed it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime, status.st_size, path


@dataclass(frozen=True)
class FrozenStates:
    """R states of B latents of a trajectory of the frozen model, and what it predicts there. fp32."""

    latents: Tensor  # (R, B, 4, h, w)
    timesteps: Tensor  # (R,)
    cond: Tensor  # (R, B, 4, h, w), for what the trajectory is conditioned on
    uncond: Tensor  # (R, B, 4, h, w), for the empty prompt


class FrozenRollouts:
    """Trajectories of one job, by the frozen model."""

    def __init__(self, base: Base, rollouts: Rollouts, precision: str, store: RolloutStore | None) -> None:
        self.base, self.rollouts, self.store = base, rollouts, store
        scheduler = rollouts.scheduler
        of = [type(scheduler).__name__, dict(scheduler.config), scheduler.timesteps.tolist(), rollouts.guidance_scale]
        self._common = [base.state_id, *of, precision, _digest(rollouts.uncond)]
        self._last: tuple[str, FrozenStates] | None = None

    def states(
        self, teacher: NoisePredictor, start: Start, conditioning: Conditioning, stops: Sequence[int]
    ) -> FrozenStates:
        """Before each of the stops, by the frozen model `teacher`: held, found, or made and stored."""
        noise = _digest(Conditioning(start.noise))
        key = content_id([*self._common, noise, _digest(conditioning), list(stops)])
        if self._last is None or self._last[0] != key:
            with self.base.in_turn(key):
                found = self.store.get(key) if self.store else None
                states = FrozenStates(**found) if found else self._make(teacher, start, conditioning, stops)
                if self.store and not found:
                    self.store.put(key, {field.name: getattr(states, field.name).cpu() for field in fields(states)})
            device = start.noise.device
            moved = {field.name: getattr(states, field.name).to(device) for field in fields(states)}
            self._last = key, FrozenStates(**moved)
        return self._last[1]

    def _make(
        self, teacher: NoisePredictor, start: Start, conditioning: Conditioning, stops: Sequence[int]
    ) -> FrozenStates:
        """What guidance has predicted on the way is kept; at the last stop, or without guidance, both are made anew."""
        rows, made = len(start.noise), list[tuple[Tensor, float, Tensor]]()

        def kept(latents: Tensor, timestep: int | Tensor, conditioning: Conditioning) -> Tensor:
            prediction = teacher(latents, timestep, conditioning)
            if len(latents) == 2 * rows:
                made.append((latents[:rows], float(timestep), prediction))
            return prediction

        def predicted(latents: Tensor, timestep: Tensor) -> Tensor:
            """Of the empty prompt, then of the conditioning: (2 B, 4, h, w)."""
            for seen, time, prediction in made:  # some schedulers look twice at a timestep, at other latents
                if time == float(timestep) and torch.equal(seen, latents):
                    return prediction
            return teacher(latents.repeat(2, 1, 1, 1), timestep, both)

        states = self.rollouts.run_past(kept, start, conditioning, stops)
        both = Conditioning.cat([self.rollouts.uncond.expand(rows), conditioning.expand(rows)])
        predictions = [
            predicted(latents, timestep).chunk(2)
            for latents, timestep in zip(states.latents, states.timesteps, strict=True)
        ]
        uncond, cond = (torch.stack(each).contiguous() for each in zip(*predictions, strict=True))
        return FrozenStates(states.latents, states.timesteps, cond, uncond)


def _digest(conditioning: Conditioning) -> str:
    digest = hashlib.sha256()
    for tensor in (conditioning.encoder_hidden_states, *(part for _, part in sorted(conditioning.added.items()))):
        digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
