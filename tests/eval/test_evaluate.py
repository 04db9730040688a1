"""One model evaluated: images, verdicts and the two tables, on the tiny base."""

import hashlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import UserError
from efface.eval.judge import Verdict
from efface.eval.judging.eval_requests import eval_requests
from efface.eval.judging.evaluate import evaluate
from efface.eval.judging.image_errors import broken_images
from efface.eval.judging.image_table import IMAGE_SCHEMA, SCHEMA
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample


@pytest.fixture
def requested(world: ConceptSet, prompts: PromptSet) -> Any:
    return eval_requests(prompts, world, [world.find("Cat"), world.find("Van Gogh")], [0, 1], {"forget": 1})


def run(base: Base, recipe: Recipe, requested: Any, judges: list[Any], world: ConceptSet) -> Any:
    return evaluate(base, recipe, requested, judges, world, model_id="m", method="esd")


def test_rows_come_by_question_then_ask_then_judge(
    tiny_base: Base, recipe: Recipe, requested: Any, world: ConceptSet, stub_judge: Any
) -> None:
    one, two = stub_judge(lambda image, concept: concept.name == "Cat"), stub_judge(lambda image, concept: None)
    two.name = "two"
    verdicts, images = run(tiny_base, recipe, requested, [one, two], world)
    assert verdicts.schema == SCHEMA
    assert images.schema == IMAGE_SCHEMA
    expected = [
        (question.prompt, question.seed, ask.concept, ask.axis, judge)
        for question in requested
        for ask in question.asks
        for judge in ("stub", "two")
    ]
    rows = verdicts.to_pylist()
    assert [(r["prompt"], r["seed"], r["concept"], r["axis"], r["judge"]) for r in rows] == expected
    assert {r["present"] for r in rows if r["judge"] == "stub" and r["asked_concept"] == "Cat"} == {True}
    assert {(r["present"], r["score"]) for r in rows if r["judge"] == "two"} == {(None, None)}
    assert {r["base_id"] for r in rows} == {tiny_base.fingerprint}


def test_every_image_is_kept_pixel_for_pixel_under_the_hash_of_its_pixels(
    tiny_base: Base, recipe: Recipe, requested: Any, world: ConceptSet, stub_judge: Any
) -> None:
    verdicts, images = run(tiny_base, recipe, requested, [stub_judge(lambda image, concept: True)], world)
    pixels = sample(tiny_base, recipe, [ImageRequest(q.prompt, q.seed) for q in requested])
    for row, image in zip(images.to_pylist(), pixels, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["png"]))), image)
        assert row["image_sha256"] == hashlib.sha256(b"16x16x3 " + image.tobytes()).hexdigest()
    assert set(verdicts["image_sha256"].to_pylist()) == set(images["image_sha256"].to_pylist())


def test_a_model_that_makes_no_numbers_is_never_asked_about_and_has_no_verdict(
    tiny_base: Base, recipe: Recipe, requested: Any, world: ConceptSet, stub_judge: Any
) -> None:
    bias = tiny_base.unet.conv_out.bias
    delta = Delta("weights", {"unet.conv_out.bias": bias * torch.nan}, {"base_id": tiny_base.fingerprint})
    tiny_base.swap(delta)
    judge = stub_judge(lambda image, concept: False)
    with pytest.warns(UserWarning, match="not numbers"):
        verdicts, _ = run(tiny_base, recipe, requested, [judge], world)
    assert judge.requested == []
    rows = verdicts.to_pylist()
    assert {(r["present"], r["score"], r["image_error"]) for r in rows} == {(None, None, "not finite")}
    assert broken_images(verdicts) == {"not finite": len(requested)}


def test_a_score_that_is_no_number_is_no_verdict(
    tiny_base: Base, recipe: Recipe, requested: Any, world: ConceptSet, stub_judge: Any
) -> None:
    class Broken(stub_judge):  # type: ignore[misc, valid-type]
        def judge(self, images: Any, requested: Any) -> list[Verdict]:
            return [Verdict(False, float("nan"))] * len(requested)

    verdicts, _ = run(tiny_base, recipe, requested, [Broken(None)], world)
    rows = verdicts.to_pylist()
    assert {(r["present"], r["score"], r["image_error"]) for r in rows} == {(None, None, None)}


def test_a_judge_is_asked_once_per_image_and_concept(
    tiny_base: Base, recipe: Recipe, requested: Any, world: ConceptSet, stub_judge: Any
) -> None:
    judge = stub_judge(lambda image, concept: True)
    run(tiny_base, recipe, requested, [judge], world)
    pairs = {(q.prompt, q.seed, ask.asked_concept) for q in requested for ask in q.asks}
    assert len(judge.requested) == len(pairs) < sum(len(q.asks) for q in requested)


def test_a_judge_that_does_not_know_a_concept_stops_before_the_first_image(
    tiny_base: Base, recipe: Recipe, requested: Any, world: ConceptSet, stub_judge: Any
) -> None:
    judge = stub_judge(lambda image, concept: True)

    def refuse(concepts: Any) -> None:
        raise UserError("does not know " + ", ".join(concept.name for concept in concepts))

    judge.check = refuse
    done: list[int] = []
    with pytest.raises(UserError, match="does not know Cat, Dog, Tulip, Van Gogh"):
        evaluate(tiny_base, recipe, requested, [judge], world, model_id="m", method="esd", on_batch=done.append)
    assert done == []


def test_a_part_of_the_questions_gives_the_same_rows(
    tiny_base: Base, recipe: Recipe, requested: Any, world: ConceptSet, stub_judge: Any
) -> None:
    judge = stub_judge(lambda image, concept: bool(image[0, 0, 0] % 2))
    whole, _ = run(tiny_base, recipe, requested, [judge], world)
    parts = [run(tiny_base, recipe, part, [judge], world)[0] for part in (requested[:3], requested[3:])]
    assert parts[0].to_pylist() + parts[1].to_pylist() == whole.to_pylist()
