"""Hooks that hold tensors, made by a training: like any other, an image is independent of its neighbours in a batch."""

from typing import Any

import numpy as np
import pytest

from efface.concepts.concept import ConceptSet
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.train.run_job import run_job

TRAINED: dict[str, dict[str, Any]] = {
    "spm": {"transport": "facilitated", "learning_rate": 1.0},
    "receler": {"learning_rate": 1.0},
}
"""Methods whose delta is such a hook, with settings by which they act on a tiny model."""

MIXED = [ImageRequest(prompt, seed) for seed, prompt in enumerate(("a red cat", "", "a dog in a red hat"))]
RECIPE = Recipe(name="t", scheduler="ddim", steps=4, guidance_scale=5.0, height=16, width=16, batch_size=2)


@pytest.mark.parametrize("method", TRAINED)
def test_an_image_does_not_depend_on_what_else_is_in_its_batch(
    method: str, quick_job: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    plain = sample(tiny_base, RECIPE, MIXED)
    delta, _ = run_job(quick_job(method, **TRAINED[method]), tiny_base, concept_set)
    assert delta.kind == "hook" and delta.tensors
    tiny_base.swap(delta)
    images = sample(tiny_base, RECIPE, MIXED)
    for i, request in enumerate(MIXED):
        assert np.array_equal(sample(tiny_base, RECIPE, [request])[0], images[i])
    tiny_base.swap(None)
    assert not np.array_equal(images, plain)
    assert np.array_equal(sample(tiny_base, RECIPE, MIXED), plain), "nothing of the hook is left"
