"""A model family is one file: methods, the sampler and deltas run on a tiny SDXL that they know nothing of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sdxl  # noqa: F401  registers the family
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import UserError
from efface.models.base import Base, BaseSpec, load_base
from efface.models.conditioning import Conditioning
from efface.models.parameter_groups import select
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.models.text.text_encoding import encode_prompts
from efface.train.job import make_job
from efface.train.run_job import run_job

CONCEPTS = ConceptSet(
    name="tests",
    version=1,
    concepts=(
        Concept(name="cat", kind="animal", phrase="a cat", anchor="a pet"),
        Concept(name="dog", kind="animal", phrase="a dog", anchor="a pet"),
    ),
)
RECIPE = Recipe(name="t", scheduler="ddim", steps=3, guidance_scale=3.0, height=16, width=16, batch_size=2)
REQUESTS = [ImageRequest("a cat", seed) for seed in range(3)]
METHODS = {
    "esd": ({"steps": 2, "learning_rate": 1e-2, "rollout_steps": 3}, "xattn"),
    "uce": ({}, "kv-xattn"),
}


@pytest.fixture
def sdxl(tiny_base_folder: Path) -> Base:
    return load_base(BaseSpec(name="xl", source=str(tiny_base_folder), family="tiny-sdxl", image_size=16))


def test_an_unknown_family_is_refused_with_the_known_ones(tiny_base_folder: Path) -> None:
    with pytest.raises(UserError, match="unknown model family 'sd9'"):
        load_base(BaseSpec(name="x", source=str(tiny_base_folder), family="sd9"))


@torch.no_grad()
def test_a_prediction_hangs_on_what_the_family_adds(sdxl: Base) -> None:
    prompts = encode_prompts(sdxl, ["a cat", "a dog"])
    latents = torch.randn(2, *sdxl.latent_shape, generator=torch.Generator().manual_seed(0))
    pooled = {"text_embeds": prompts[[1, 0]].added["text_embeds"]}
    swapped = Conditioning(prompts.encoder_hidden_states, {**prompts.added, **pooled})
    predicted, other = (sdxl.denoiser(latents, 500, one) for one in (prompts, swapped))
    direct = sdxl.unet(latents, 500, prompts.encoder_hidden_states, added_cond_kwargs=dict(prompts.added)).sample
    assert torch.equal(predicted, direct) and not torch.allclose(predicted, other)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_edits_it_and_nothing_but_its_group(method: str, sdxl: Base) -> None:
    config, group = METHODS[method]
    before = {name: value.clone() for name, value in sdxl.tensors().items()}
    job = make_job("xl", sdxl.fingerprint, method, CONCEPTS, ["cat"], config=config)
    delta, _ = run_job(job, sdxl, CONCEPTS)
    assert all(torch.equal(value, before[name]) for name, value in sdxl.tensors().items())
    plain = sample(sdxl, RECIPE, REQUESTS)
    sdxl.swap(delta)
    changed = {name for name, value in sdxl.tensors().items() if not torch.equal(value, before[name])}
    assert changed and changed <= set(select(sdxl, group))
    assert not np.array_equal(sample(sdxl, RECIPE, REQUESTS), plain)
    sdxl.swap(None)
    assert np.array_equal(sample(sdxl, RECIPE, REQUESTS), plain)


def rows(*values: int) -> Conditioning:
    return Conditioning(torch.tensor(values).view(-1, 1, 1), {"text_embeds": 10 * torch.tensor(values).view(-1, 1)})


def numbers(conditioning: Any) -> list[int]:
    """Its rows; what is added goes with them."""
    found = conditioning.encoder_hidden_states.flatten().tolist()
    assert conditioning.added["text_embeds"].flatten().tolist() == [10 * value for value in found]
    return list(found)


def test_rows_are_indexed_joined_and_repeated_with_what_is_added() -> None:
    three = rows(1, 2, 3)
    assert [numbers(three[row]) for row in (0, -1)] == [[1], [3]]
    assert numbers(three[1:]) == [2, 3] and numbers(three[[2, 0]]) == [3, 1]
    assert [numbers(row) for row in three] == [[1], [2], [3]]
    assert numbers(rows(7).expand(2)) == [7, 7]
    assert numbers(three.repeat_interleave(2)) == [1, 1, 2, 2, 3, 3]
    assert numbers(Conditioning.cat([three, rows(4)])) == [1, 2, 3, 4]
    assert three.to(torch.float64).added["text_embeds"].dtype == torch.float64
