"""LACU's settings around any fine-tuner: the nearest safe target, and replay of what is near and stays."""

from typing import Any

import numpy as np
import pytest
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import UserError
from efface.models.base import Base
from efface.models.text.text_encoding import encode_prompts
from efface.train.data import score_distance
from efface.train.data.latents import noised
from efface.train.data.score_distance import score_distances, with_nearest_anchors
from efface.train.job import make_job
from efface.train.method import UnlearningTask, parse_config
from efface.train.run_job import run_job
from efface.train.seeds import generator
from efface.train.trainer import replay as replaying
from efface.train.trainer.replay import Replay, nearest_prompts

QUICK = {"steps": 1, "learning_rate": 1e-3, "rollout_steps": 2}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = score_distance.drawing_recipe
    for module in (score_distance, replaying):
        monkeypatch.setattr(module, "drawing_recipe", lambda size: recipe(size).model_copy(update={"steps": 2}))
    monkeypatch.setattr(score_distance, "IMAGES", 2)


def task_of(base: Base, concepts: ConceptSet, name: str = "cat", erased: tuple[str, ...] = ()) -> UnlearningTask:
    return UnlearningTask(base, (concepts.find(name),), concepts, 0, erased=tuple(map(concepts.find, erased)))


@torch.no_grad()
def test_the_distance_is_the_mean_square_between_two_prompts_predictions(
    tiny_base: Base, concept_set: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(score_distance, "noised", lambda *given: drawn.append(noised(*given)) or drawn[-1])
    found = score_distances(task_of(tiny_base, concept_set), "a cat", ["a dog", "a cat"])
    assert len(drawn) == 4 and float(found[1]) == 0.0
    squares = []
    for sample in drawn:
        said = [
            tiny_base.denoiser(sample.latents, sample.timesteps, encode_prompts(tiny_base, [text]).expand(2)).double()
            for text in ("a cat", "a dog")
        ]
        squares.append(float(np.mean((said[0].numpy() - said[1].numpy()) ** 2)))
    assert float(found[0]) == pytest.approx(float(np.mean(squares)), rel=1e-9) and squares[0] != squares[1]


def test_a_concept_is_mapped_to_the_nearest_of_its_kind_that_stays(
    tiny_base: Base, concept_set: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = {"a cat": 0.0, "a dog": 1.0, "a fox": 2.0, "a barn": 0.5}
    monkeypatch.setattr(
        score_distance, "score_distances", lambda task, phrase, others: torch.tensor([near[text] for text in others])
    )
    barn = Concept(name="barn", kind="object", phrase="a barn")
    world = ConceptSet(name="tests", version=1, concepts=(*concept_set.concepts, barn))
    assert with_nearest_anchors(task_of(tiny_base, world)).concepts[0].anchor == "dog"
    assert with_nearest_anchors(task_of(tiny_base, world, erased=("dog",))).concepts[0].anchor == "fox"
    with pytest.raises(UserError, match="no object stays that 'barn' could be mapped to"):
        with_nearest_anchors(task_of(tiny_base, world, "barn"))


def test_the_nearest_target_is_what_the_method_is_given(tiny_base: Base, concept_set: ConceptSet) -> None:
    """CA of the concept with that anchor by hand, and with the setting: the same delta."""
    quick = {
        "samples_seen": 1, "batch_size": 1, "effective_learning_rate": 1e-3,
        "anchor_prompts": 1, "anchor_images": 1, "image_steps": 2,
    }  # fmt: skip

    def erased(concepts: ConceptSet, **config: Any) -> dict[str, torch.Tensor]:
        job = make_job("tiny", tiny_base.fingerprint, "ca", concepts, ["cat"], config={**quick, **config})
        return run_job(job, tiny_base, concepts)[0].tensors

    anchor = with_nearest_anchors(task_of(tiny_base, concept_set)).concepts[0].anchor
    cat, *others = concept_set.concepts
    by_hand = ConceptSet(name="tests", version=1, concepts=(cat.model_copy(update={"anchor": anchor}), *others))
    found, expected = erased(concept_set, map_to="nearest"), erased(by_hand)
    assert anchor in ("dog", "fox") and all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("method", ["esd", "race", "sdd", "spm", "fmn", "hirm", "receler", "advunlearn", "eap", "fade"])
def test_where_no_anchor_is_read_there_is_none_to_be_mapped_to(method: str) -> None:
    with pytest.raises(UserError, match="unknown key 'map_to'"):
        parse_config(method, {"map_to": "nearest"})


def test_a_pseudo_concept_excludes_the_nearest_target() -> None:
    parse_config("salun", {"map_to": "nearest"})
    with pytest.raises(UserError, match="map_to: nearest should be without pseudo"):
        parse_config("salun", {"map_to": "nearest", "pseudo": "a dog"})


@torch.no_grad()
def test_replay_holds_the_predictions_of_the_model_before(
    tiny_base: Base, concept_set: ConceptSet, shaken: Any
) -> None:
    config: Any = parse_config("esd", {**QUICK, "replay_weight": 2.0, "batch_size": 2, "replay_images": 2})
    replay = Replay(task_of(tiny_base, concept_set), config, ["a dog", "a fox"])
    student = tiny_base.denoiser.copy()
    assert float(replay.loss(student, 0)) == 0.0
    shaken(student)
    sample = noised(replay.images, [0, 1], replay.scheduler, generator(0, "replay", 0))
    rows = {0: "a dog", 1: "a fox"}
    order = [0, 1] if torch.equal(sample.latents, _first(replay)) else [1, 0]
    sample = noised(replay.images, order, replay.scheduler, generator(0, "replay", 0))
    conditioning = [encode_prompts(tiny_base, [rows[image]]) for image in order]
    squares = [
        (student(sample.latents[[i]], sample.timesteps[[i]], one).double()
         - tiny_base.denoiser(sample.latents[[i]], sample.timesteps[[i]], one).double()).square().mean()
        for i, one in enumerate(conditioning)
    ]  # fmt: skip
    assert float(replay.loss(student, 0)) == pytest.approx(float(sum(squares) / 2), rel=1e-5)


def _first(replay: Replay) -> torch.Tensor:
    """The latents of batch 0."""
    seen: list[torch.Tensor] = []
    replay.loss(lambda latents, timesteps, conditioning: seen.append(latents) or latents, 0)
    return seen[0]


def test_the_nearest_prompts_are_replayed(
    tiny_base: Base, concept_set: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = {"a dog": 3.0, "a fox": 1.0, "a hen": 2.0}
    monkeypatch.setattr(
        replaying, "score_distances", lambda task, phrase, others: torch.tensor([far[text] for text in others])
    )
    task = task_of(tiny_base, concept_set)
    assert nearest_prompts(task, list(far), 2) == ["a fox", "a hen"] and nearest_prompts(task, ["a dog"], 2) == [
        "a dog"
    ]
    with pytest.raises(UserError, match="no retained concept is there to be replayed"):
        nearest_prompts(task, [], 2)


def test_replay_slows_the_change_of_what_stays_and_is_refused_for_the_text_encoder(
    tiny_base: Base, concept_set: ConceptSet, quick_job: Any
) -> None:
    def error(**config: Any) -> float:
        job = quick_job("esd", steps=6, learning_rate=3e-3, batch_size=1, **config)
        delta, _ = run_job(job, tiny_base, concept_set)
        latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        dog = encode_prompts(tiny_base, ["a dog"]).expand(4)
        with torch.no_grad():
            before = tiny_base.denoiser(latents, 500, dog)
            tiny_base.swap(delta)
            after = tiny_base.denoiser(latents, 500, dog)
            tiny_base.swap(None)
        return float((after - before).square().mean())

    assert error(replay_weight=100.0, replay=["a dog"], replay_images=2) < 0.7 * error()
    with pytest.raises(UserError, match="replay_weight is for methods that train the denoiser"):
        run_job(quick_job("hirm", replay_weight=1.0), tiny_base, concept_set)
