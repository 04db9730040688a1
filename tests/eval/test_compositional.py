"""Prompts with two concepts of which one is erased: which pairs are asked, and what is counted."""

from typing import Any

import pytest

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import UserError
from efface.eval.metric import METRICS, JudgedContext
from efface.eval.metrics.compositional import Compositional, partners, together
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.recipe import Recipe


def context(recipe: Recipe, world: ConceptSet, judge: Any, *forgotten: str) -> JudgedContext:
    return JudgedContext(recipe, world, tuple(map(world.find, forgotten)), judge, world.all)


def test_a_thing_is_asked_for_in_a_style_and_beside_another_thing(world: ConceptSet) -> None:
    cat, tulip, van_gogh = map(world.find, ("Cat", "Tulip", "Van Gogh"))
    assert together(cat, tulip) == "a cat and a tulip"
    assert together(cat, van_gogh) == together(van_gogh, cat) == "a cat, a painting by Van Gogh"


def test_partners_must_stay_and_styles_and_what_is_held_out_come_first(recipe: Recipe) -> None:
    def concept(name: str, kind: Any = "object", held_out: bool = False) -> Concept:
        return Concept(name=name, kind=kind, phrase=f"a {name}", held_out=held_out)

    things = [concept("cat"), concept("bus"), concept("tram", held_out=True), concept("dog"), concept("neon", "style")]
    world = ConceptSet(name="w", version=1, concepts=tuple(things))
    judged = context(recipe, world, None, "cat", "dog")
    assert [other.name for other in partners(world.find("cat"), judged)] == ["neon", "tram", "bus"]
    unknown = JudgedContext(recipe, world, judged.forgotten, judged.judge, (world.find("bus"),))
    assert [other.name for other in partners(world.find("cat"), unknown)] == ["bus"]


def test_shares_are_of_the_edited_model_and_of_the_base_on_the_same_images(
    tiny_base: Base, recipe: Recipe, world: ConceptSet, stub_judge: Any
) -> None:
    name = next(name for name in tiny_base.tensors() if name.endswith("attn2.to_k.weight"))
    delta = Delta("weights", {name: tiny_base.tensors()[name] * 0.5}, {"base_id": tiny_base.fingerprint})

    def answer(image: Any, concept: Concept) -> bool | None:
        """The base shows all; the edited model has lost the cat, and the tulip with it."""
        if tiny_base.applied is None:
            return True
        return concept.name == "Van Gogh"

    found = METRICS.get("compositional")
    assert found is Compositional
    numbers = Compositional()(tiny_base, delta, context(recipe, world, stub_judge(answer), "Cat"))
    assert numbers == {
        "erased_present": 0.0,
        "other_present": 0.5,
        "base_erased_present": 1.0,
        "base_other_present": 1.0,
        "images": 4.0,
        "unreadable": 0.0,
    }
    assert tiny_base.applied is None


def test_answers_that_cannot_be_read_are_in_no_share(
    tiny_base: Base, recipe: Recipe, world: ConceptSet, stub_judge: Any
) -> None:
    judge = stub_judge(lambda image, concept: None if concept.name == "Tulip" else True)
    delta = Delta("weights", {}, {"base_id": tiny_base.fingerprint})
    numbers = Compositional()(tiny_base, delta, context(recipe, world, judge, "Cat"))
    assert numbers["other_present"] == 1.0 and numbers["unreadable"] == 4.0


def test_without_anything_that_should_stay_there_is_nothing_to_measure(
    tiny_base: Base, recipe: Recipe, world: ConceptSet, stub_judge: Any
) -> None:
    judged = context(recipe, world, stub_judge(lambda image, concept: True), "Cat", "Tulip", "Van Gogh")
    with pytest.raises(UserError, match="nothing that should stay"):
        Compositional()(tiny_base, Delta("weights", {}, {"base_id": tiny_base.fingerprint}), judged)
