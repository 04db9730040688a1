"""The losses of CA, ESD and FADE against their formulas in float64, written in numpy term by term.

The student is a function that gives fixed numbers, so that nothing but the formula is tested.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.train.method import parse_config
from efface.train.methods.ca import CA, NoisyBatch
from efface.train.methods.esd import ESD, Rollout
from efface.train.methods.fade import FADE, FADEBatch
from efface.train.negative_guidance import esd_target

NOBODY = Conditioning(torch.zeros(1, 77, 4))


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def saying(predicted: Tensor) -> Any:
    return lambda latents, timestep, conditioning: predicted


def mean_square(a: Tensor, b: Tensor) -> float:
    return float(np.mean((a.numpy() - b.numpy()) ** 2))


@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_esd_draws_the_concept_to_the_other_side_of_the_empty_prompt(eta: float) -> None:
    """|| eps - [ eps_0 - eta (eps_c - eps_0) ] ||^2, the mean over elements; with eta 0 eps_0 alone is the target."""
    predicted, concept, uncond = (numbers(2, 4, 3, 3, seed=seed) for seed in range(3))
    target = esd_target(uncond, concept, uncond, eta)
    wanted = uncond.numpy() - eta * (concept.numpy() - uncond.numpy())
    method = ESD(parse_config("esd", {"eta": eta}))
    loss = method.loss(saying(predicted), Rollout(predicted, torch.tensor(1), NOBODY, target))
    assert float(loss) == pytest.approx(np.mean((predicted.numpy() - wanted) ** 2), rel=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_ca_adds_the_weighted_prior_to_the_error_at_the_anchors_prediction(masked: bool) -> None:
    """|| eps - target ||^2 + w || eps' - eps* ||^2; the masked term is a sum over channels over the region's places."""
    predicted, prior_predicted, target, prior_target = (numbers(3, 4, 5, 5, seed=seed) for seed in range(4))
    regions = (numbers(3, 1, 5, 5, seed=9) > 0).double()
    config = {"prior_weight": 0.3, "masked_loss": masked}
    batch = (
        NoisyBatch(predicted, torch.zeros(3), NOBODY.expand(3), target, regions if masked else None),
        NoisyBatch(predicted, torch.zeros(3), NOBODY.expand(3), prior_target),
    )
    loss = CA(parse_config("ca", config)).loss(saying(torch.cat([predicted, prior_predicted])), batch)
    squares, places = (predicted - target).numpy() ** 2, regions.numpy()
    first = np.mean([(square * place).sum() / place.sum() for square, place in zip(squares, places, strict=True)])
    first = first if masked else squares.mean()
    assert float(loss) == pytest.approx(first + 0.3 * mean_square(prior_predicted, prior_target), rel=1e-12)


def fade_batch() -> tuple[Tensor, FADEBatch]:
    """What the student predicts for the target and two neighbours, and what the base does; two noises."""
    predicted = numbers(6, 4, 3, 5, seed=0)
    null, neighbours, sentences = (
        numbers(2, 4, 3, 5, seed=1),
        numbers(2, 2, 4, 3, 5, seed=2),
        numbers(3, 2, 4, 3, 5, seed=3),
    )
    return predicted, FADEBatch(predicted, torch.tensor(1), NOBODY, null, neighbours, sentences)


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 50, 1000)])
def test_fade_adds_its_three_terms(mode: str, weights: tuple[float, float, float]) -> None:
    predicted, batch = fade_batch()
    target, adapted = predicted[:2], predicted[2:].unflatten(0, (2, 2))

    def distance(a: Tensor, b: Tensor) -> float:
        difference = a.numpy() - b.numpy()
        if mode == "paper":
            return float(np.mean(difference**2))
        return float(np.mean(np.sqrt(np.sum((difference + 1e-6) ** 2, axis=-1))))

    total = np.mean if mode == "paper" else np.sum
    towards, away = ([distance(target, each) for each in kind] for kind in (batch.neighbours, batch.sentences))
    erase = max(0.0, float(total(towards) - total(away)) + 8.0)
    adjacent = float(total([mean_square(a, b) for a, b in zip(adapted, batch.neighbours, strict=True)]))
    assert erase > 0
    config = dict(zip(("erase_weight", "adjacent_weight", "guidance_weight"), weights, strict=True))
    method = FADE(parse_config("fade", {**config, "mode": mode, "margin": 8.0}))
    expected = weights[0] * erase + weights[1] * adjacent + weights[2] * mean_square(target, batch.null)
    assert float(method.loss(saying(predicted), batch)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("kind", "sign"), [("neighbours", 1), ("sentences", -1)])
def test_fades_hinge_pulls_to_the_neighbours_and_away_from_the_sentences(kind: str, sign: int) -> None:
    """Moving the base's predictions further from the target's along their difference raises, or lowers, L_er."""
    predicted, batch = fade_batch()
    method = FADE(parse_config("fade", {"adjacent_weight": 0, "guidance_weight": 0, "margin": 100.0}))
    before = float(method.loss(saying(predicted), batch))
    theirs = getattr(batch, kind)
    theirs += 0.1 * (theirs - predicted[:2])
    assert sign * (float(method.loss(saying(predicted), batch)) - before) > 0


@torch.no_grad()
def test_a_fresh_adapter_is_the_base_to_the_bit(recorded_base: Any) -> None:
    student = recorded_base.denoiser.copy()
    latents, conditioning = numbers(2, 4, 8, 8, seed=0).float(), Conditioning(numbers(2, 77, 16, seed=1).float())
    before = student(latents, 500, conditioning)
    method = FADE(parse_config("fade", {}))
    method.add_adapters(student, seed=0)
    assert method.adapters.layers and torch.equal(student(latents, 500, conditioning), before)
