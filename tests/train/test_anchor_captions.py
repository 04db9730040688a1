"""How a caption of the anchor becomes one of the concept, kind by kind (Kumari et al. 2023, appendix)."""

from typing import Any, get_args

import pytest

from efface.concepts.concept import Concept, ConceptSet, Kind
from efface.errors import UserError
from efface.train.data.captions import captions


def made(
    kind: Any, phrase: str, anchor: str | None, own: Any = (), limit: int = 200, name: str = "X"
) -> list[tuple[str, str]]:
    concept = Concept(name=name, kind=kind, phrase=phrase, anchor=anchor)
    monet = Concept(name="Monet", kind="style", phrase="Monet style")
    concept_set = ConceptSet(name="tests", version=1, concepts=(concept, monet))
    return [(c.anchor, c.target) for c in captions(concept, concept_set, {kind: own} if own else {}, limit)]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_there_are_two_hundred_captions_of_every_kind_as_in_the_paper(kind: str) -> None:
    pairs = made(kind, "PHRASE", "ANCHOR", limit=1000)
    assert len({anchor for anchor, _ in pairs}) == 200 == len({target for _, target in pairs})
    assert all("ANCHOR" in anchor for anchor, _ in pairs)


def test_the_first_captions_differ_in_motif_and_setting() -> None:
    first = [anchor for anchor, _ in made("animal", "a grumpy cat", "a cat", limit=3)]
    assert first == ["a photo of a cat", "a close-up photo of a cat in the grass", "a wide shot of a cat in a forest"]


def test_an_object_takes_the_anchors_place() -> None:
    pairs = made("animal", "a grumpy cat", "a cat", own=["a photo of {}, asleep"])
    assert pairs == [("a photo of a cat, asleep", "a photo of a grumpy cat, asleep")]


def test_a_style_is_added_to_a_caption_without_style() -> None:
    anchor, target = made("style", "Van Gogh style", "a painting", limit=2, name="Van Gogh")[1]
    assert anchor == "a painting of a village street at dawn"
    assert target == "a painting of a village street at dawn, in the style of Van Gogh"


def test_a_style_takes_the_place_of_another_style() -> None:
    anchor, target = made("style", "Van Gogh style", "Monet", limit=2)[1]
    assert (anchor, target) == ("a village street at dawn, Monet style", "a village street at dawn, Van Gogh style")


def test_what_is_not_safe_for_work_is_put_before_the_caption() -> None:
    assert made("nsfw", "nudity", "a person", limit=1) == [("a photo of a person", "nudity, a photo of a person")]


def test_a_concept_without_anchor_is_refused() -> None:
    with pytest.raises(
        UserError, match="concept 'X' has no anchor to be mapped to: give it one in the concept set tests"
    ):
        made("animal", "a cat", None)


def all_forms(kind: Any, phrase: str, own: str) -> tuple[str, ...]:
    concept = Concept(name="X", kind=kind, phrase=phrase, anchor="a picture")
    concept_set = ConceptSet(name="tests", version=1, concepts=(concept,))
    return captions(concept, concept_set, {kind: [own]}, 1, "all")[0].targets


def test_the_authors_forms_of_a_style_and_of_what_is_not_safe_for_work() -> None:
    """Chosen with a probability of a third each; the second form of a style twice as often (their `__getprompt__`)."""
    assert all_forms("style", "X style", "a hill") == ("a hill, in the style of X", *["in X's style, a hill"] * 2)
    assert all_forms("nsfw", "nudity", "a man") == ("nudity, a man", "in nudity style, a man", "a man, nudity")
    assert all_forms("object", "an X", "a photo of {}") == ("a photo of an X",)


def test_a_caption_without_a_place_is_refused_where_the_concept_would_take_it() -> None:
    with pytest.raises(UserError, match="templates of style: 'a hill' should hold"):
        made("style", "X style", "Monet", own=["a hill"])
