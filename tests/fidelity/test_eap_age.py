"""EAP and AGE against their papers: terms and signs in image space, the search, and its vocabulary."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.models.base import Base
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.concept_search import ConceptSearch, SearchConfig, relaxed
from efface.train.data.vocabulary import VocabularyConfig, candidates, nearest_to_centres
from efface.train.method import UnlearningTask
from efface.train.seeds import generator


def image(state: Any, predicted: Tensor, alpha: Tensor) -> Tensor:
    """x_0 of a noise prediction (DDIM, eq. 9), fp64."""
    return (state.latents.double() - (1 - alpha).sqrt() * predicted.double()) / alpha.sqrt()


@torch.no_grad()
@pytest.mark.parametrize("name", ["eap", "age"])
def test_the_loss_is_both_terms_in_image_space(
    name: str, prepare: Any, shaken: Any, tiny_base: Base, alphas_cumprod: Tensor
) -> None:
    method, student = prepare(name, eta=2.0, preserve_weight=0.7, batch_size=2)
    shaken(student)
    for index in range(4):
        batch = method.batch(index)
        timestep = batch.erased.timestep
        alpha = alphas_cumprod[int(timestep)].double()
        cat, empty = (encode_prompts(tiny_base, [prompt]).expand(2) for prompt in ("a cat", ""))
        assert torch.equal(batch.concept.encoder_hidden_states, cat.encoder_hidden_states)
        instead = empty if name == "eap" else batch.found
        images = {
            key: image(batch.erased, predict(batch.erased.latents, timestep, row), alpha)
            for key, predict, row in (
                ("student", student, cat),
                ("own", tiny_base.denoiser, cat),
                ("instead", tiny_base.denoiser, instead),
            )
        }
        goal = images["instead"] - 2.0 * (images["own"] - images["instead"])
        erase = (images["student"] - goal).square().mean()
        kept, original = (
            image(batch.kept, predict(batch.kept.latents, timestep, batch.found), alpha)
            for predict in (student, tiny_base.denoiser)
        )
        expected = float(erase + 0.7 * (kept - original).square().mean())
        assert float(method.loss(student, batch)) == pytest.approx(expected, rel=2e-4)


@torch.no_grad()
def test_both_states_come_from_one_noise_by_the_student(prepare: Any, shaken: Any) -> None:
    eap, student = prepare("eap")
    shaken(student)
    index = next(index for index in range(50) if int(eap.batch(index).erased.timestep) == 667)  # stopped at its start
    batch = eap.batch(index)
    assert torch.equal(batch.erased.latents, batch.kept.latents)
    later = next(index for index in range(50) if int(eap.batch(index).erased.timestep) == 1)
    assert not torch.equal(eap.batch(later).erased.latents, eap.batch(later).kept.latents)


def search_among(base: Base, **config: Any) -> ConceptSearch:
    return ConceptSearch(encode_prompts(base, ["a dog", "a fox", "a bus"]), SearchConfig(**config))


@torch.no_grad()
def test_a_hard_choice_is_one_candidate_and_all_are_drawn(tiny_base: Base) -> None:
    search = search_among(tiny_base)
    rows = search.rows.encoder_hidden_states
    drawn = [search.draw(generator(0, index)).encoder_hidden_states[0] for index in range(30)]
    which = [[torch.allclose(one, row, atol=1e-5) for row in rows].index(True) for one in drawn]
    assert set(which) == {0, 1, 2}


def test_the_soft_shares_are_the_largest_ones_brought_to_one() -> None:
    logits = np.array([0.3, 1.2, -0.5, 0.9])
    shares = np.exp(logits / 2) / np.exp(logits / 2).sum()
    largest = shares * np.array([0, 1, 0, 1])
    found = relaxed(torch.tensor(logits), 2.0, "soft", 2)
    np.testing.assert_allclose(found.numpy(), largest / largest.sum(), rtol=1e-12)
    hard = relaxed(torch.tensor(logits, requires_grad=True), 2.0, "hard", 2)
    np.testing.assert_allclose(hard.detach().numpy(), [0, 1, 0, 0], atol=1e-15)


def test_the_gradient_of_a_hard_choice_is_that_of_the_soft_shares() -> None:
    weights = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    gradients = []
    for mixture in ("hard", "soft"):
        logits = torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64, requires_grad=True)
        (relaxed(logits, 0.5, mixture, 3) * weights).sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


def test_the_search_climbs_to_the_candidate_of_the_largest_objective(tiny_base: Base) -> None:
    search = search_among(tiny_base, search_learning_rate=0.3, temperature=1.0)
    goal = search.rows.encoder_hidden_states[2]
    for step in range(60):
        drawn = search.draw(generator(1, step)).encoder_hidden_states
        search.adversary.maximize(-(drawn - goal).square().mean())
    assert int(search.weights.argmax()) == 2
    other = search_among(tiny_base, search_learning_rate=0.3, temperature=1.0)
    other.adversary.restore({key: value.clone() for key, value in search.adversary.state().items()})
    for one in (search, other):
        one.adversary.maximize(-(one.draw(generator(2, 0)).encoder_hidden_states - goal).square().mean())
    assert torch.equal(search.weights, other.weights)


def test_pi_moves_before_every_step_but_the_first_and_the_weights_do_not(prepare: Any, shaken: Any) -> None:
    eap, student = prepare("eap")
    shaken(student)
    trained = {name: value.requires_grad_(True) for name, value in eap.trained(student).items()}
    before = {name: value.detach().clone() for name, value in trained.items()}
    start = eap.searches[0].weights.detach().clone()
    assert torch.equal(start, torch.full_like(start, 1 / len(start)))
    eap.before_step(0)
    assert torch.equal(eap.searches[0].weights, start)
    eap.before_step(1)
    assert not torch.equal(eap.searches[0].weights, start)
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in trained.items())


def task(base: Base, concept_set: Any, *names: str) -> UnlearningTask:
    return UnlearningTask(base, tuple(concept_set.find(name) for name in names), concept_set, 0)


def test_candidates_are_the_nearest_by_the_distance_of_whole_prompts(tiny_base: Base, concept_set: Any) -> None:
    words = ["a bus", "a cab", "zebra stripes", "a cat"]
    requested = task(tiny_base, concept_set, "cat")
    found, rows = candidates(requested, requested.concepts[0], VocabularyConfig(vocabulary=words, nearest=2, centres=0))
    own = encode_prompts(tiny_base, ["a cat"]).encoder_hidden_states
    distances = {
        word: float((encode_prompts(tiny_base, [word]).encoder_hidden_states - own).square().sum().sqrt())
        for word in words[:3]  # the concept itself is none
    }
    assert found == sorted(distances, key=lambda word: distances[word])[:2]
    assert torch.equal(rows.encoder_hidden_states, encode_prompts(tiny_base, found).encoder_hidden_states)


def test_what_is_forgotten_is_no_candidate(tiny_base: Base, concept_set: Any) -> None:
    requested = task(tiny_base, concept_set, "cat", "dog")
    found, _ = candidates(requested, requested.concepts[0], VocabularyConfig(vocabulary="concepts"))
    assert found == ["a fox"]


def test_centres_thin_the_candidates_over_their_distances() -> None:
    """Four groups of values: the one nearest each group's mean, by hand."""
    values = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.3, 5.4, 9.0, 20.0, 20.2, 20.7])
    assert nearest_to_centres(values, 4).tolist() == [1, 4, 6, 8]
