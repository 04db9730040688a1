"""The world of pictures: a picture is a function of its scene, and words fit what is drawn."""

import re

import numpy as np
import pytest

from efface.miniature.styles import PAINTERS
from efface.miniature.vocabulary import BY_NAME, CONCEPTS, NAMES, OBJECTS, STYLES, siblings
from efface.miniature.world import DRAWINGS, draw_scene, empty_scene, labels, render


def test_a_scene_and_its_picture_depend_on_seed_and_index_alone() -> None:
    first = [render(draw_scene(3, index)) for index in range(20)]
    again = [render(draw_scene(3, index)) for index in reversed(range(20))][::-1]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, [render(draw_scene(4, i)) for i in range(20)], strict=True))


@pytest.mark.parametrize("style", list(PAINTERS))
def test_every_thing_is_drawn_as_a_64_px_picture_that_differs_from_its_empty_ground(style: str) -> None:
    for words in OBJECTS:
        scene = draw_scene(5, 7, words.name, style)
        picture = render(scene)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        assert picture.std() > 12, words.name


def test_siblings_drawn_alike_in_all_but_their_kind_differ_in_many_pixels() -> None:
    for words in OBJECTS:
        for other in siblings(words.name):
            scene = draw_scene(6, 1, words.name, "plain")
            twin = type(scene)(other, *(getattr(scene, f) for f in ("style", "color", "ground", "size", "seed")))
            changed = np.abs(render(scene).astype(int) - render(twin).astype(int)).max(axis=-1) > 60
            assert changed.mean() > 0.04, (words.name, other)


def test_labels_name_the_thing_and_the_named_style() -> None:
    table = labels(draw_scene(0, 0, "fox", "neon"))
    assert {NAMES[i] for i in np.flatnonzero(table)} == {"fox", "neon"}
    assert {NAMES[i] for i in np.flatnonzero(labels(draw_scene(0, 0, "fox", "plain")))} == {"fox"}
    assert not labels(empty_scene(0, 0))[: len(OBJECTS)].any()


def test_there_are_four_groups_of_five_things_and_at_least_four_styles() -> None:
    assert [len([w for w in OBJECTS if w.group == g]) for g in ("animals", "plants", "vehicles", "fruit")] == [5] * 4
    assert len(STYLES) >= 4
    assert {words.name for words in OBJECTS} == set(DRAWINGS)


def test_every_concept_has_aliases_descriptions_an_anchor_and_three_siblings() -> None:
    for words in CONCEPTS:
        assert words.aliases and len(words.descriptions) == 5 and words.anchor in BY_NAME
        assert words.anchor != words.name and len(siblings(words.name)) >= 3


def test_no_name_or_alias_stands_for_two_concepts_and_no_description_is_used_twice() -> None:
    for said in ([n for w in CONCEPTS for n in (w.name, *w.aliases)], [d for w in CONCEPTS for d in w.descriptions]):
        assert len(said) == len(set(said))


def test_descriptions_never_hold_a_name_or_an_alias_of_any_concept() -> None:
    said = [name for words in CONCEPTS for name in (words.name, *words.aliases)]
    for words in CONCEPTS:
        for description in words.descriptions:
            assert not [name for name in said if re.search(rf"\b{name}(e?s)?\b", description)], description
