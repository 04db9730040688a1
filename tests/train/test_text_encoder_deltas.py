"""A delta of the text encoder goes every way that one of the UNet goes: sampled, exported, stacked, attacked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from efface.concepts.concept import ConceptSet
from efface.eval.attacks.token_search import SearchObjective
from efface.eval.metrics.weight_change import weight_change
from efface.models.base import Base, load_base
from efface.models.delta import Delta
from efface.models.export import export
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.models.text.text_encoding import encode_prompts
from efface.train.job import Job, make_job
from efface.train.method import GradientMethod, get_method, method_names
from efface.train.run_job import run_job

QuickJob = Callable[..., Job]
RECIPE = Recipe(name="t", scheduler="ddim", steps=3, guidance_scale=5.0, height=16, width=16, batch_size=2)
REQUESTS = [ImageRequest("a cat", 0), ImageRequest("a red dog", 1)]


def of_text_encoder(name: str) -> bool:
    method = get_method(name)
    return issubclass(method, GradientMethod) and method.network == "text_encoder"


NAMES = [name for name in method_names() if of_text_encoder(name)]


@pytest.fixture
def delta(quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet) -> Delta:
    """HiRM's for the cat."""
    return run_job(quick_job("hirm", learning_rate=0.1), tiny_base, concept_set)[0]


def after(base: Base, concept_set: ConceptSet, first: Job, parent: Delta, method: str, job: Job) -> Delta:
    """What `efface unlearn METHOD --concept dog --after` leaves."""
    request = make_job(
        "tiny",
        first.base_id,
        method,
        concept_set,
        ["cat", "dog"],
        config=job.config,
        strategy="continual",
        parent=first.id,
    )
    return run_job(request, base, concept_set, parent=parent)[0]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_text_encoder_changes(
    name: str, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    delta, _ = run_job(quick_job(name), tiny_base, concept_set)
    assert {key.split(".")[0] for key in delta.tensors} == {"text_encoder"}
    change = weight_change(tiny_base, delta)
    assert change.unet.global_l2 == 0 < change.all.global_l2 and "te-full" in change.groups


def test_prompts_are_encoded_anew_for_each_model(tiny_base: Base, delta: Delta) -> None:
    plain, before = sample(tiny_base, RECIPE, REQUESTS), encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states
    tiny_base.swap(delta)
    edited = sample(tiny_base, RECIPE, REQUESTS)
    assert not torch.equal(encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states, before)
    assert not np.array_equal(edited, plain)
    tiny_base.swap(None)
    assert np.array_equal(sample(tiny_base, RECIPE, REQUESTS), plain)


def test_the_exported_folder_makes_the_very_images_of_the_delta(tiny_base: Base, delta: Delta, tmp_path: Path) -> None:
    export(tiny_base, delta, tmp_path / "out")
    tiny_base.swap(delta)
    edited = sample(tiny_base, RECIPE, REQUESTS)
    assert np.array_equal(sample(load_base(tmp_path / "out"), RECIPE, REQUESTS), edited)


def test_it_stacks_with_deltas_of_the_unet_in_either_order(
    quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    text, unet = quick_job("hirm", learning_rate=0.1), quick_job("esd", variant="x-strict")
    of_text, of_unet = (run_job(job, tiny_base, concept_set)[0] for job in (text, unet))
    for first, parent, method, job in ((text, of_text, "esd", unet), (unet, of_unet, "hirm", text)):
        both = after(tiny_base, concept_set, first, parent, method, job)
        assert both.tensors.keys() == of_text.tensors.keys() | of_unet.tensors.keys()
        kept = [name for name in parent.tensors if name in both.tensors]
        assert kept and all(torch.equal(both.tensors[name], parent.tensors[name]) for name in kept)
        tiny_base.swap(both)
        assert all(torch.equal(tiny_base.tensors()[name], value) for name, value in both.tensors.items())
        tiny_base.swap(None)


def test_what_trains_after_it_reads_prompts_with_the_edited_encoder(
    quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet, delta: Delta
) -> None:
    """ESD's request after another one that changed nothing but the text encoder is not ESD's on the base."""
    first, esd = quick_job("hirm", learning_rate=0.1), quick_job("esd", variant="x-strict")
    chained = after(tiny_base, concept_set, first, delta, "esd", esd)
    alone = make_job("tiny", first.base_id, "esd", concept_set, ["dog"], config=esd.config)
    from_base, _ = run_job(alone, tiny_base, concept_set)
    assert any(not torch.equal(chained.tensors[name], value) for name, value in from_base.tensors.items())


def test_images_kept_for_one_encoder_are_not_taken_for_another(
    quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet, delta: Delta, tmp_path: Path
) -> None:
    """CA's images of the anchor, which a cache keeps, are of the model of the request before."""
    first, ca = quick_job("hirm", learning_rate=0.1), quick_job("ca")
    dog = make_job("tiny", first.base_id, "ca", concept_set, ["dog"], config=ca.config)
    run_job(dog, tiny_base, concept_set, cache=tmp_path)
    kept = {path for path in tmp_path.rglob("*") if path.is_file()}
    request = make_job(
        "tiny",
        first.base_id,
        "ca",
        concept_set,
        ["cat", "dog"],
        config=ca.config,
        strategy="continual",
        parent=first.id,
    )
    run_job(request, tiny_base, concept_set, parent=delta, cache=tmp_path)
    assert kept and {path for path in tmp_path.rglob("*") if path.is_file()} > kept


def test_an_attack_searches_against_the_encoder_in_place(tiny_base: Base, delta: Delta) -> None:
    before = SearchObjective(tiny_base, ["a cat"]).direction
    tiny_base.swap(delta)
    objective = SearchObjective(tiny_base, ["a cat"])
    assert not torch.allclose(objective.direction, before)
    hidden = encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states
    end = len(tiny_base.tokenizer("a cat", add_special_tokens=False).input_ids) + 1
    pooled = torch.nn.functional.normalize(hidden[0, end], dim=0)
    torch.testing.assert_close(objective.direction[0], pooled, atol=1e-5, rtol=1e-4)
