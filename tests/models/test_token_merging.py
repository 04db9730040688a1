"""ToMe: which tokens are merged, and that each is given back its own place."""

import numpy as np
import torch

from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.models.sampling.token_merging import match

RECIPE = Recipe(name="t", scheduler="ddim", steps=3, guidance_scale=5.0, height=16, width=16, batch_size=2)
REQUESTS = [ImageRequest("a red cat", seed) for seed in range(2)]


def test_tokens_that_are_the_same_in_each_four_come_back_as_they_were() -> None:
    cells = torch.randn(2, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    tokens = cells.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1, 2)
    matching = match(tokens, 6, 0.75)
    assert matching.merge(tokens).shape == (2, 9, 5)
    assert torch.allclose(matching.unmerge(matching.merge(tokens)), tokens, atol=1e-6)


def test_the_one_most_alike_is_merged_to_the_mean_and_the_rest_stay_as_they_are() -> None:
    """2 x 2 tokens, the first stays; the third points almost the same way."""
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.3], [-1.0, 0.5]]])
    matching = match(tokens, 2, 0.25)
    merged = matching.merge(tokens)
    assert merged.shape == (1, 3, 2)
    assert torch.allclose(merged[0, -1], torch.tensor([2.0, 0.15]))
    back = matching.unmerge(merged)[0]
    assert torch.allclose(back[0], torch.tensor([2.0, 0.15])) and torch.equal(back[2], back[0])
    assert torch.equal(back[[1, 3]], tokens[0, [1, 3]])


def test_it_acts_on_images_and_leaves_nothing_behind(tiny_base: Base) -> None:
    plain = sample(tiny_base, RECIPE, REQUESTS)
    merged = sample(tiny_base, RECIPE.model_copy(update={"token_merging": 0.5}), REQUESTS)
    assert not np.array_equal(merged, plain)
    assert np.array_equal(sample(tiny_base, RECIPE, REQUESTS), plain)
