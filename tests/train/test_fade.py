"""FADE: its losses against their formulas in numpy, and what it feeds them: whose latents, whose predictions."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import UserError
from efface.models.base import Base
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import denoise_past, partial_denoise
from efface.models.noise_scheduler import make_scheduler
from efface.models.text.text_encoding import encode_prompts
from efface.train.data import neighbours, rollouts
from efface.train.data.conditions import without_article
from efface.train.fade_losses import code_adjacent_loss, code_erase_loss, paper_adjacent_loss, paper_erase_loss
from efface.train.job import make_job
from efface.train.method import UnlearningTask, parse_config, preset_names
from efface.train.methods.fade import FADE
from efface.train.run_job import run_job
from efface.train.trainer.loop import train

JAY = Concept(name="Blue Jay", kind="animal", phrase="a blue jay", adjacent=("finch", "crow"))
CROW = Concept(name="crow", kind="animal", phrase="a crow", adjacent=("finch",))
FINCH = Concept(name="finch", kind="animal", phrase="a finch")
BIRDS = ConceptSet(name="birds", version=1, concepts=(JAY, CROW), neighbours=(FINCH,))
QUICK = {
    "steps": 2,
    "batch_size": 2,
    "warmup_steps": 0,
    "rollout_steps": 4,
    "sizes": None,
    "neighbours": "adjacent",
}


def ready(base: Base, *concepts: Concept, **config: Any) -> tuple[FADE, Denoiser]:
    """The method after `prepare`, and the student with its adapters."""

    method = FADE(parse_config("fade", {**QUICK, **config}))
    student = base.denoiser.copy()
    method.add_adapters(student, 3)
    method.prepare(UnlearningTask(base, concepts or (JAY,), BIRDS, seed=3), student)
    return method, student


def wake(method: FADE) -> None:
    """Give the adapters something to say."""
    for index, adapter in enumerate(method.adapters.layers.values()):
        noise = torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(index))
        adapter.up.data = 0.3 * noise


@pytest.mark.parametrize("preset", preset_names("fade"))
def test_every_shipped_preset_is_a_config(preset: str) -> None:
    assert parse_config("fade", {}, preset) != parse_config("fade", {})


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Target (n, 4, h, w), neighbours' original and adapted (K, …), sentences' original (J, …)."""
    rng = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 6, 5), (5, 2, 4, 6, 5), (5, 2, 4, 6, 5), (3, 2, 4, 6, 5))
    return tuple(torch.randn(shape, generator=rng) for shape in shapes)  # type: ignore[return-value]


def test_the_authors_erase_loss_sums_mean_row_norms_five_against_three(predictions: Any) -> None:
    target, neighbours, _, sentences = predictions
    t, near, own = (x.double().numpy() for x in (target, neighbours, sentences))

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean(np.sqrt(np.sum((a - b + 1e-6) ** 2, axis=-1))))

    hinge = sum(distance(t, x) for x in near) - sum(distance(t, x) for x in own) + 1.0
    assert hinge > 0
    assert code_erase_loss(target, neighbours, sentences, 1.0).item() == pytest.approx(hinge, rel=1e-5)


def test_the_papers_erase_loss_compares_mean_squares(predictions: Any) -> None:
    target, neighbours, _, sentences = predictions
    near = np.mean([np.mean((target - x).numpy() ** 2) for x in neighbours])
    own = np.mean([np.mean((target - x).numpy() ** 2) for x in sentences])
    assert paper_erase_loss(target, neighbours, sentences, 1.5).item() == pytest.approx(near - own + 1.5, rel=1e-5)


@pytest.mark.parametrize("loss", [code_erase_loss, paper_erase_loss])
def test_the_erase_loss_rests_once_the_target_is_far_enough_from_its_old_self(loss: Any) -> None:
    neighbours, sentences = torch.zeros(5, 1, 4, 2, 2), torch.full((3, 1, 4, 2, 2), 9.0)
    assert loss(torch.zeros(1, 4, 2, 2), neighbours, sentences, 1.0) == 0


def test_the_adjacent_loss_is_a_sum_for_the_authors_and_a_mean_in_the_paper(predictions: Any) -> None:
    _, original, adapted, _ = predictions
    squares = [np.mean((a - b).numpy() ** 2) for a, b in zip(adapted, original, strict=True)]
    assert code_adjacent_loss(adapted, original).item() == pytest.approx(sum(squares), rel=1e-5)
    assert paper_adjacent_loss(adapted, original).item() == pytest.approx(np.mean(squares), rel=1e-5)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_the_loss_weighs_the_three_terms(tiny_base: Base, mode: str) -> None:
    weights = {"erase_weight": 2.0, "adjacent_weight": 5.0, "guidance_weight": 7.0}
    method, student = ready(tiny_base, mode=mode, **weights)
    batch = method.batch(0)
    wake(method)
    predicted = student(batch.latents, batch.timestep, batch.conditioning)
    target, adjacent = predicted[:2], predicted[2:].reshape(2, 2, 4, 8, 8)
    erase, adjoin = (code_erase_loss, code_adjacent_loss) if mode == "code" else (paper_erase_loss, paper_adjacent_loss)
    expected = (
        2 * erase(target, batch.neighbours, batch.sentences, 1.0)
        + 5 * adjoin(adjacent, batch.neighbours)
        + 7 * (target - batch.null).square().mean()
    )
    torch.testing.assert_close(method.loss(student, batch), expected)


def test_every_prompt_has_latents_of_its_own_from_one_noise_denoised_with_guidance_3(tiny_base: Base) -> None:
    method, _ = ready(tiny_base)
    batch = method.batch(0)
    predict, empty = tiny_base.denoiser, encode_prompts(tiny_base, [""])
    scheduler = make_scheduler("ddim", {**tiny_base.scheduler_config, "clip_sample": False}, 4)
    stop = scheduler.timesteps.tolist().index(int(batch.timestep))
    assert stop >= 1

    def alone(prompt: str) -> tuple[Tensor, Tensor]:
        cond = encode_prompts(tiny_base, [prompt])
        latents, timestep = partial_denoise(predict, scheduler, cond, empty, noise, 3.0, stop)
        return latents, predict(latents, timestep, cond.expand(2))

    noise = _noise(method)
    with torch.no_grad():
        target, _ = alone("blue jay")
        finch, eps_finch = alone("finch")
        crow, eps_crow = alone("crow")
        sentences = [alone(f"A photo of {many} blue jay")[1] for many in ("a", "many", "more than two")]
        null = predict(target, batch.timestep, empty.expand(2))
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(batch.latents, torch.cat([target, finch, crow]), **close)
    torch.testing.assert_close(batch.neighbours, torch.stack([eps_finch, eps_crow]), **close)
    torch.testing.assert_close(batch.sentences, torch.stack(sentences), **close)
    torch.testing.assert_close(batch.null, null, **close)


def _noise(method: FADE) -> Tensor:
    """The noise of batch 0, seen on its way into the trajectories."""
    seen: list[Tensor] = []

    def spy(predict: Any, scheduler: Any, cond: Any, uncond: Any, noise: Tensor, *rest: Any) -> Any:
        seen.append(noise)
        return denoise_past(predict, scheduler, cond, uncond, noise, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "denoise_past", spy)
        method.batch(0)
    (noise,) = seen
    rows = noise.unflatten(0, (-1, 2))
    assert all(torch.equal(row, rows[0]) for row in rows), "one noise for every prompt"
    return rows[0]


def test_trajectories_follow_the_adapters_and_targets_are_the_frozen_bases(tiny_base: Base) -> None:
    method, _ = ready(tiny_base)
    before = method.batch(0)
    wake(method)
    after = method.batch(0)
    assert not torch.allclose(before.latents, after.latents)
    with torch.no_grad():
        empty = encode_prompts(tiny_base, [""]).expand(2)
        null = tiny_base.denoiser(after.latents[:2], after.timestep, empty)
    torch.testing.assert_close(after.null, null, rtol=1e-4, atol=1e-5)


def test_the_timestep_is_the_latents_own_or_the_authors_noisier_one(tiny_base: Base) -> None:
    own, _ = ready(tiny_base, rollout_steps=30)
    theirs, _ = ready(tiny_base, rollout_steps=30, authors_timestep=True)
    for index in range(3):
        gap = int(theirs.batch(index).timestep) - int(own.batch(index).timestep)
        assert 32 <= gap <= 41  # one less than theirs: this base's schedule is offset by one


def test_heights_and_widths_are_drawn_from_the_sizes(tiny_base: Base) -> None:
    method, _ = ready(tiny_base, sizes=[16, 32], batch_size=1, rollout_steps=2)
    shapes = {tuple(method.batch(index).latents.shape[2:]) for index in range(24)}
    assert shapes == {(8, 8), (8, 16), (16, 8), (16, 16)}


def test_several_concepts_take_turns_and_none_is_a_neighbour_of_another(tiny_base: Base) -> None:
    method, _ = ready(tiny_base, JAY, CROW)
    task = UnlearningTask(tiny_base, (JAY, CROW), BIRDS, seed=3)
    assert [method.texts(concept, task)[-1] for concept in (JAY, CROW)] == ["finch", "finch"]
    given = [method.batch(index).conditioning.encoder_hidden_states[0] for index in range(12)]
    jay, crow = (
        sum(torch.equal(prompts.encoder_hidden_states[0], prompt) for prompt in given) for prompts in method.prompts
    )
    assert jay > 0 and crow > 0 and jay + crow == 12


def test_neighbours_are_computed_from_the_set_or_from_the_candidates(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []

    def nearest(base: Base, target: str, candidates: list[str], *rest: Any) -> list[str]:
        given.append((target, candidates, *rest))
        return candidates[:1]

    monkeypatch.setattr(neighbours, "nearest", nearest)
    task = UnlearningTask(tiny_base, (JAY,), BIRDS, seed=3)
    config = {"neighbours": "computed"}
    assert FADE(parse_config("fade", config)).neighbours(JAY, task) == ["crow"]
    config = {**config, "candidates": ["an owl", "a blue jay"], "neighbour_count": 2, "prompt": "one {}"}
    assert FADE(parse_config("fade", config)).neighbours(JAY, task) == ["one owl"]
    assert given == [("a blue jay", ["a crow", "a finch"], 5, 8, None), ("a blue jay", ["an owl"], 2, 8, None)]
    listed = FADE(parse_config("fade", {"neighbours": ["florida jay", "cardinal"]}))
    assert listed.neighbours(JAY, task) == ["florida jay", "cardinal"]


def test_adjacent_concepts_are_taken_in_the_sets_order_and_at_most_so_many(tiny_base: Base) -> None:
    task = UnlearningTask(tiny_base, (JAY,), BIRDS, seed=3)
    few, all_of_them = (
        FADE(parse_config("fade", {"neighbours": "adjacent", "neighbour_count": count})).neighbours(JAY, task)
        for count in (1, 5)
    )
    assert few == ["finch"] and all_of_them == ["finch", "crow"]


def test_without_any_neighbour_the_user_learns_what_to_list(tiny_base: Base) -> None:
    with pytest.raises(UserError, match="no neighbours of 'finch'"):
        ready(tiny_base, FINCH)


def test_prompts_are_bare_names() -> None:
    phrases = ("a cat", "an owl", "the sea", "Theatre", "Van Gogh")
    assert [without_article(phrase) for phrase in phrases] == ["cat", "owl", "sea", "Theatre", "Van Gogh"]


def test_guidance_alone_brings_the_targets_prediction_to_the_empty_prompts(tiny_base: Base) -> None:
    config = {**QUICK, "steps": 30, "erase_weight": 0.0, "adjacent_weight": 0.0, "learning_rate": 0.02}
    losses = train(FADE(parse_config("fade", config)), UnlearningTask(tiny_base, (JAY,), BIRDS, seed=0)).losses
    assert np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])


def test_the_delta_is_an_adapter_that_merges_into_what_the_student_became(tiny_base: Base) -> None:
    config = {**QUICK, "learning_rate": 0.01}
    job = make_job("tiny", tiny_base.fingerprint, "fade", BIRDS, ["Blue Jay"], config=config)
    delta, _ = run_job(job, tiny_base, BIRDS)
    assert delta.kind == "adapter"
    method, student = ready(tiny_base)
    for name, value in method.adapters.parameters().items():
        value.data = delta.tensors[name].clone()
    x, c = torch.randn(2, 4, 8, 8), encode_prompts(tiny_base, ["blue jay", "crow"])
    with torch.no_grad():
        adapted, base = student(x, 500, c), tiny_base.denoiser(x, 500, c)
        tiny_base.swap(delta)
        torch.testing.assert_close(tiny_base.denoiser(x, 500, c), adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted, base, rtol=1e-3, atol=1e-4)
