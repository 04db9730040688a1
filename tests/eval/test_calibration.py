"""Which images of the base a judge is calibrated on, and the accuracy and threshold that follow from its answers."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompt_csv import PromptRow
from efface.concepts.prompts import PromptSet
from efface.errors import UserError
from efface.eval.calibration import calibration as calibration_of
from efface.eval.calibration.calibration import Calibration, JudgeAnswer, JudgeAnswers, answer_requests, calibrate
from efface.eval.calibration.calibration_requests import CalibrationRequest, calibration_requests
from efface.eval.calibration.judge_accuracy import mean_accuracy
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import sample

MADE = {"base_id": "b", "recipe_id": "r", "prompts_sha256": "p"}
NAMES = [f"thing {i}" for i in range(25)]
MANY = ConceptSet(
    name="many", version=1, concepts=tuple(Concept(name=n, kind="object", phrase=f"the {n}") for n in NAMES)
)
FIVE = PromptSet("five", {name: PromptRow(tuple(f"{name} {k}" for k in "abcde")) for name in NAMES})


def of(requests: tuple[CalibrationRequest, ...], name: str, fitting: bool) -> list[CalibrationRequest]:
    return [r for r in requests if r.asked[0] == name and r.fitting is fitting]


def test_each_concept_has_as_many_images_to_fit_on_as_to_measure_on_by_several_prompts_and_none_twice() -> None:
    requests = calibration_requests(FIVE, MANY, MANY.concepts, 20, fitted=True)
    assert len(requests) == 25 * 40 == len({(r.prompt, r.seed) for r in requests})
    for fitting in (True, False):
        assert Counter(r.prompt[-1] for r in of(requests, "thing 3", fitting)) == dict.fromkeys("abcde", 4)
    assert len(calibration_requests(FIVE, MANY, MANY.concepts, 20, fitted=False)) == 25 * 20


def test_images_of_one_concept_are_shared_as_images_without_the_others() -> None:
    requests = calibration_requests(FIVE, MANY, MANY.concepts, 20, fitted=True)
    for fitting in (True, False):
        asked = Counter(name for r in requests if r.fitting is fitting for name in r.asked[1:])
        assert set(asked) == set(NAMES) and set(asked.values()) == {200}
    assert all(len(r.asked) == len(set(r.asked)) == 11 for r in requests)
    beside = {name for r in of(requests, "thing 3", True) for name in r.asked[1:]}
    assert beside == set(NAMES) - {"thing 3"}


def test_few_concepts_are_all_looked_for_in_every_image(world: ConceptSet, prompts: PromptSet) -> None:
    requests = calibration_requests(prompts, world, world.concepts, 1, fitted=False)
    assert [set(r.asked) for r in requests] == [{"Cat", "Tulip", "Van Gogh"}] * 3
    assert (requests[0].prompt, requests[0].asked[0]) == ("an image of a cat", "Cat")


def test_an_image_is_not_judged_for_a_concept_that_its_prompt_names(world: ConceptSet) -> None:
    prompts = PromptSet("p", {"Van Gogh": PromptRow(("a kitty by Van Gogh", "a field"))})
    requests = calibration_requests(prompts, world, world.concepts, 2, fitted=False)
    assert [set(r.asked) for r in of(requests, "Van Gogh", False)] == [
        {"Van Gogh", "Tulip"},
        {"Van Gogh", "Cat", "Tulip"},
    ]


def answers(concept: str, own: int, others: int, fitting: bool = True, scores: Any = None) -> JudgeAnswers:
    """Scores of 0.9 for images of the concept and 0.1 for others, or those that `scores` gives."""
    rows = [(True, 0.9)] * own + [(False, 0.1)] * others if scores is None else scores
    return JudgeAnswers(
        answers=tuple(
            JudgeAnswer(concept=concept, own=mine, fitting=fitting, present=None, score=s) for mine, s in rows
        )
    )


class Scorer:
    """A judge whose thresholds are to be fitted."""

    name, version, needs_thresholds = "scorer", "1", True

    def check(self, concepts: Any) -> None: ...

    def judge(self, images: Any, concepts: Any) -> Any: ...

    def scores(self, images: Any, concepts: Any) -> Any: ...

    def calibrated(self, thresholds: Any) -> "Scorer":
        return self


def found(*parts: JudgeAnswers) -> Calibration:
    concepts = [MANY.find(name) for name in ("thing 0", "thing 1")]
    return calibrate(Scorer(), parts, concepts, **MADE)[1]


def test_a_threshold_says_on_how_many_images_it_was_fitted_and_is_measured_on_others() -> None:
    measured = [(True, 0.9), (True, 0.2), (False, 0.1), (False, 0.8), (False, 0.1), (False, None)]
    result = found(
        answers("thing 0", 20, 30),
        answers("thing 1", 10, 10),
        answers("thing 0", 0, 0, False, measured),
        answers("thing 1", 1, 1, False),
    )
    assert [(t.own, t.others, t.pooled) for t in result.thresholds.values()] == [(20, 30, False), (10, 10, False)]
    assert result.thresholds["thing 0"].value == pytest.approx(0.5, abs=0.01)
    accuracy = result.accuracy["thing 0"]
    assert (accuracy.recall, accuracy.own) == (0.5, 2)
    assert (accuracy.specificity, accuracy.others, accuracy.unreadable) == (pytest.approx(2 / 3), 3, 1)


@pytest.mark.parametrize(("own", "others"), [(9, 30), (30, 9)])
def test_a_concept_with_too_few_images_takes_the_threshold_of_all_together(own: int, others: int) -> None:
    high = [(True, 0.99)] * own + [(False, 0.7)] * others
    result = found(answers("thing 0", 20, 30), answers("thing 1", 0, 0, True, high))
    one, other = result.thresholds["thing 0"], result.thresholds["thing 1"]
    assert (one.pooled, other.pooled) == (False, True)
    assert (other.own, other.others) == (20 + own, 30 + others)


def test_a_concept_of_which_the_base_makes_no_whole_image_calibrates_no_judge() -> None:
    nothing = answers("thing 1", 0, 0, True, [(True, None), (False, 0.1)])
    with pytest.raises(UserError, match=r"judge 'scorer' cannot be calibrated on 'thing 1': .* none is whole"):
        found(answers("thing 0", 20, 20), nothing)


def test_a_calibration_needs_two_concepts() -> None:
    with pytest.raises(UserError, match="cannot be calibrated on 1 concepts, should be at least two"):
        calibrate(Scorer(), [], [MANY.concepts[0]], **MADE)


@pytest.fixture
def asked(tiny_base: Base, recipe: Recipe, world: ConceptSet, prompts: PromptSet) -> Any:
    """A function from a judge to its calibration on one image of each of three concepts."""

    def make(judge: Any) -> Calibration:
        concepts = [world.find("Cat"), world.find("Rose"), world.find("Tulip")]
        requests = calibration_requests(prompts, world, concepts, 1, fitted=False)
        parts = [answer_requests(judge, tiny_base, recipe, world, [request]) for request in requests]
        return calibrate(judge, parts, concepts, **MADE)[1]

    return make


def test_accuracy_is_recall_on_own_images_and_specificity_on_the_others(asked: Any, stub_judge: Any) -> None:
    all_seen = asked(stub_judge(lambda image, concept: True))
    cat = all_seen.accuracy["Cat"]
    assert (cat.recall, cat.specificity, cat.own, cat.others, cat.unreadable) == (1, 0, 1, 2, 0)
    assert all_seen.thresholds == {} and mean_accuracy(all_seen.accuracy) == 0.5
    blind = asked(stub_judge(lambda image, concept: None if concept.name == "Rose" else False))
    rose, cat = blind.accuracy["Rose"], blind.accuracy["Cat"]
    assert (rose.recall, rose.specificity, rose.own, rose.others, rose.unreadable) == (None, None, 0, 0, 3)
    assert (cat.recall, cat.specificity, cat.own, cat.others) == (0, 1, 1, 2)


def test_an_image_that_is_no_evidence_is_not_judged_and_counts_for_no_accuracy(
    asked: Any, stub_judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_black(*given: Any) -> np.ndarray:
        images = sample(*given)
        if "cat" in given[2][0].prompt:
            images[0] = 0
        return images

    monkeypatch.setattr(calibration_of, "sample", first_black)
    judge = stub_judge(lambda image, concept: True)
    result = asked(judge)
    assert result.broken == {"blanked": 1}
    assert all(pixels for _, pixels in judge.requested)
    assert [(a.own, a.others, a.unreadable) for a in result.accuracy.values()] == [(0, 2, 1), (1, 1, 1), (1, 1, 1)]


def test_a_saved_calibration_reads_back(asked: Any, stub_judge: Any, tmp_path: Any) -> None:
    result = asked(stub_judge(lambda image, concept: True))
    result.save(tmp_path / "c.json")
    assert calibration_of.read_calibration(tmp_path / "c.json") == result


def test_a_calibration_from_before_images_were_counted_still_reads(tmp_path: Any) -> None:
    rate = {"recall": 1.0, "specificity": 0.5, "own": 1, "others": 2, "unreadable": 0}
    old = {
        **{"judge": "eye", "weights": "w", "judge_version": "v", "base_id": "b", "recipe_id": "r"},
        **{"prompts_sha256": "p", "seeds": [0, 1], "thresholds": {"Cat": 0.25}, "accuracy": {"Cat": rate}},
    }
    (tmp_path / "c.json").write_text(json.dumps(old))
    read = calibration_of.read_calibration(tmp_path / "c.json")
    assert read.fitted == {"Cat": 0.25} and read.thresholds["Cat"].own is None
    assert read.accuracy["Cat"].recall == 1 and read.accuracy["Cat"].recall_interval is None
