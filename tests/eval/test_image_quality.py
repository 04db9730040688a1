"""CLIP score, FID and KID, against their formulas written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_judge_clip import IMAGES, model
from transformers import CLIPModel, CLIPProcessor

from efface.eval.image_quality import ClipScore, frechet_distance, kernel_distance

__all__ = ["model"]


def test_the_clip_score_is_a_hundred_cosines_and_never_below_zero(model: Path) -> None:
    prompts = ["a cat", "a dog", "a bus", "a cat", "a rose"]
    network, processor = CLIPModel.from_pretrained(model), CLIPProcessor.from_pretrained(model)
    expected = []
    for image, prompt in zip(IMAGES, prompts, strict=True):
        with torch.no_grad():
            logits = network(**processor(text=[prompt], images=[image], return_tensors="pt")).logits_per_image
        expected.append(max(0.0, 100 * float(logits / network.logit_scale.detach().exp())))
    assert ClipScore(str(model))(IMAGES, prompts) == pytest.approx(expected, abs=1e-3)


def test_the_frechet_distance_of_independent_features_is_that_of_each() -> None:
    """(mean difference)^2 + (difference of deviations)^2, summed over features that do not correlate."""
    unit = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    reference, features = unit * torch.tensor([1.0, 2.0]), unit * torch.tensor([3.0, 5.0]) + torch.tensor([0.5, 0.0])
    spread = (4 / 3) ** 0.5  # deviation of +-1 four times
    assert frechet_distance(reference, features) == pytest.approx(
        0.25 + (2 * spread) ** 2 + (3 * spread) ** 2, rel=1e-4
    )
    assert frechet_distance(reference, reference) == pytest.approx(0.0, abs=1e-4)


def test_the_kernel_distance_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator) + 1

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)]
        return sum(pairs) / len(pairs)

    x, y = one.double().numpy(), other.double().numpy()
    assert kernel_distance(one, other) == pytest.approx(
        mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False), rel=1e-4
    )
    assert kernel_distance(one, other) == kernel_distance(one, other)
