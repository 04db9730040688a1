"""What an attack shows where it is tried on a model that never knew the concept, too."""

from typing import Any

import pytest

from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import PromptSet
from efface.eval.attacking.attack_control import compare, shown_others
from efface.eval.attacking.attack_result import AttackResult, InstanceResult
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.recipe import Recipe


def result(found: int, of: int, unknown: int = 0, **changes: Any) -> AttackResult:
    def instance(seed: int) -> InstanceResult:
        post = None if seed >= of - unknown else seed < found
        end = "found" if post else "not found" if post is False else "no verdict"
        return InstanceResult(prompt="a cat", seed=seed, pre=False, post=post, end=end, attempts=1, calls=1, seconds=0)  # type: ignore[arg-type]

    facts = dict(attack="a", kind="adaptive", model="m", method="esd", concept="cat", seed=0, budget=9, calls=9)
    counted = dict(seconds=0, pre_asr=0, post_asr=None, judged=of, unknown=unknown, ends={})
    return AttackResult(**{**facts, **counted, **changes}, instances=tuple(map(instance, range(of))))


def test_the_interval_is_newcombes_of_his_own_example() -> None:
    """56 of 70 against 48 of 80: 0.0524 to 0.3339 by method 10 (Newcombe 1998, table II, line a)."""
    compared = compare(result(56, 70), result(48, 80))
    assert (compared.low, compared.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))
    assert compared.reading == "residue"


@pytest.mark.parametrize(
    ("found", "taught", "reading"),
    [
        (9, 1, "residue"),
        (9, 9, "relearning"),
        (5, 8, "relearning"),
        (6, 4, "cannot tell"),
        (0, 0, "not back"),
        (0, 5, "not back"),
    ],
)
def test_what_a_control_says(found: int, taught: int, reading: str) -> None:
    compared = compare(result(found, 10), result(taught, 10))
    assert compared.reading == reading
    assert f"{found / 10:.2f} against {taught / 10:.2f}" in compared.sentence


def test_instances_that_are_unknown_cannot_tell_anything() -> None:
    for one, other in ((result(9, 10, unknown=1), result(0, 10)), (result(9, 10), result(0, 10, unknown=1))):
        compared = compare(one, other)
        assert compared.reading == "cannot tell" and compared.low is None
        assert "not every instance has a verdict" in compared.sentence


def test_a_control_that_shows_nothing_else_tells_nothing() -> None:
    for shows, reading in ((0.0, "cannot tell"), (0.49, "cannot tell"), (0.5, "residue"), (None, "residue")):
        assert compare(result(9, 10), result(0, 10), shows).reading == reading
    assert "too weak a model" in compare(result(9, 10), result(0, 10), 0.1).sentence


def test_what_the_control_shows_is_asked_by_direct_prompts_of_others(
    tiny_base: Base, recipe: Recipe, world: ConceptSet, prompts: PromptSet, stub_judge: Any
) -> None:
    judge = stub_judge(lambda image, concept: concept.name == "Tulip" and tiny_base.applied is None)
    delta = Delta("weights", {}, {"base_id": tiny_base.fingerprint})
    assert shown_others(tiny_base, delta, recipe, judge, world.find("Cat"), world, prompts) == 0.5
    nobody = stub_judge(lambda image, concept: None)
    assert shown_others(tiny_base, delta, recipe, nobody, world.find("Cat"), world, prompts) is None


@pytest.mark.parametrize("changes", [{"budget": 10}, {"seed": 1}, {"attack": "b"}, {"concept": "dog"}])
def test_only_the_same_attack_is_a_control(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="differs"):
        compare(result(9, 10), result(1, 10, **changes))
