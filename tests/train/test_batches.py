"""Two batches of B make the gradient that one batch of 2 B makes: why a job is the same on any number of processes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor
from efface.train.methods.ca import NoisyBatch
from efface.train.methods.esd import Rollout
from efface.train.methods.fade import FADEBatch


def joined(parts: list[Any]) -> Any:
    if parts[0] is None:
        return None
    return Conditioning.cat(parts) if isinstance(parts[0], Conditioning) else torch.cat(parts)


def ca(one: tuple[NoisyBatch, NoisyBatch], other: tuple[NoisyBatch, NoisyBatch]) -> tuple[NoisyBatch, NoisyBatch]:
    ablate, prior = (
        NoisyBatch(*(joined([getattr(part, name) for part in parts]) for name in NoisyBatch.__annotations__))
        for parts in zip(one, other, strict=True)
    )
    return ablate, prior


def esd(one: Rollout, other: Rollout) -> Rollout:
    timesteps = torch.cat([part.timestep.expand(len(part.latents)) for part in (one, other)])
    latents, conditioning, target = (
        joined([getattr(one, name), getattr(other, name)]) for name in ("latents", "conditioning", "target")
    )
    return Rollout(latents, timesteps, conditioning, target)


def fade(one: FADEBatch, other: FADEBatch) -> FADEBatch:
    """Rows go prompt by prompt: those of both batches are next to each other."""

    def beside(first: Tensor, second: Tensor) -> Tensor:
        by_prompt = [rows.unflatten(0, (-1, len(one.null))) for rows in (first, second)]
        return torch.cat(by_prompt, dim=1).flatten(0, 1)

    prompts = beside(one.conditioning.encoder_hidden_states, other.conditioning.encoder_hidden_states)
    rows: dict[str, Any] = {"latents": beside(one.latents, other.latents), "conditioning": Conditioning(prompts)}
    timesteps = beside(*(part.timestep.expand(len(part.latents)) for part in (one, other)))
    kept = {name: torch.cat([getattr(one, name), getattr(other, name)], dim=1) for name in ("neighbours", "sentences")}
    return replace(one, **rows, **kept, timestep=timesteps, null=torch.cat([one.null, other.null]))


# The margin keeps FADE's hinge open, beyond which its loss is no mean over the noises.
METHODS: dict[str, tuple[Callable[[Any, Any], Any], dict[str, Any]]] = {
    "ca": (ca, {}),
    "esd": (esd, {"batch_size": 2}),
    "fade": (fade, {"batch_size": 2, "margin": 100.0}),
}


@pytest.mark.parametrize("name", METHODS)
def test_two_batches_make_the_gradient_of_one_of_twice_the_size(
    name: str, prepare: Any, shaken: Callable[[Any], None]
) -> None:
    join, config = METHODS[name]
    method, student = prepare(name, **config)
    shaken(student)
    trained = list(method.trained(student).values())
    for value in trained:
        value.requires_grad_(True)
    with torch.no_grad():
        one, other = method.batch(0), method.batch(1)

    def gradient(predict: NoisePredictor, batch: Any) -> Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(method.loss(predict, batch), trained)])

    mean = (gradient(student, one) + gradient(student, other)) / 2
    whole = gradient(student, join(one, other))
    assert (whole - mean).norm() < 1e-5 * mean.norm()
    assert (gradient(student, one) - mean).norm() > 1e-2 * mean.norm()
