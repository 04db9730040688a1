"""SLD's equations over ten steps, derived in numpy and fp64, and the authors' four strengths."""

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.models.hooks.sld import SafetyGuidance, SLDSettings
from efface.train.method import parse_config

STRENGTHS = {  # warm-up, s_S, lambda, s_m, beta: table 7 of the paper, and `SafetyConfig` of its pipeline
    "weak": (15, 200, 0.0, 0.0, 0.0),
    "medium": (10, 1000, 0.01, 0.3, 0.4),
    "strong": (7, 2000, 0.025, 0.5, 0.7),
    "max": (0, 5000, 1.0, 0.5, 0.7),
}


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_presets_are_the_authors_strengths(strength: str) -> None:
    config = parse_config("sld", {}, strength).model_dump(exclude={"prompts", "aliases"})
    assert tuple(config.values()) == STRENGTHS[strength]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_twenty_steps_are_those_of_the_equations(strength: str) -> None:
    warm_up, s_s, threshold, s_m, beta = STRENGTHS[strength]
    rng = np.random.default_rng(0)
    predictions = 0.02 * rng.normal(size=(20, 3, 2, 4, 3, 3))  # step, uncond | cond | unsafe, batch, …
    step = 0

    def predict(latents: Tensor, timestep: object, conditions: Conditioning) -> Tensor:
        assert conditions.encoder_hidden_states[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
        return torch.tensor(predictions[step].reshape(6, 4, 3, 3)).float()

    rows = [Conditioning(torch.full((1, 77, 1), float(i))) for i in range(3)]
    settings = SLDSettings(warm_up=warm_up, scale=s_s, threshold=threshold, momentum=s_m, beta=beta)
    guidance = SafetyGuidance(settings, rows[2], lambda timestep: 1.0)
    nu = np.zeros((2, 4, 3, 3))
    for step in range(20):
        eps_0, eps_c, eps_s = predictions[step]
        mu = np.where(eps_c - eps_s >= threshold, 0, np.minimum(1, np.abs(s_s * (eps_c - eps_s))))  # eqs. 5, 6
        gamma = mu * (eps_s - eps_0) + s_m * nu  # eqs. 4, 7
        nu = beta * nu + (1 - beta) * gamma  # eq. 8
        expected = eps_0 + 7.5 * (eps_c - eps_0 - (gamma if step >= warm_up else 0))  # eq. 3
        found = guidance(predict, torch.zeros(2, 4, 3, 3), step, rows[1], rows[0], 7.5)
        np.testing.assert_allclose(found.double().numpy(), expected, atol=1e-5)
