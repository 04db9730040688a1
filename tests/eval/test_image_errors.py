"""Images that are no evidence: which they are, that no judge sees them, and how they are counted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from efface.concepts.concept import ConceptSet
from efface.eval.judging.image_errors import ImageError, broken_images, counted, image_errors
from efface.eval.judging.verdicts import verdicts

SOUND = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def plain(*colour: int) -> np.ndarray:
    return np.full((8, 8, 3), colour, np.uint8)


def with_pixel(image: np.ndarray, level: int) -> np.ndarray:
    changed = image.copy()
    changed[3, 5, 1] = level
    return changed


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (SOUND, None),
        (plain(0, 0, 0), "blanked"),
        (plain(255, 255, 255), "one colour"),
        (plain(10, 200, 30), "one colour"),  # one colour, and three different levels
        (with_pixel(plain(128, 128, 128), 130), "one colour"),  # rounding moves each pixel by one level at most
        (with_pixel(plain(128, 128, 128), 131), None),
        (with_pixel(plain(0, 0, 0), 2), "one colour"),
        (with_pixel(plain(0, 0, 0), 40), None),  # a dark picture of something small
    ],
)
def test_what_shows_nothing_is_no_evidence(image: np.ndarray, expected: ImageError | None) -> None:
    assert image_errors(np.stack([SOUND, image])) == [None, expected]


def test_values_that_were_no_numbers_come_first_whatever_they_look_like() -> None:
    images = np.stack([SOUND, plain(0, 0, 0), plain(128, 128, 128), SOUND])
    assert image_errors(images, {0, 1, 2}) == ["not finite", "not finite", "not finite", None]
    assert image_errors(np.zeros((0, 8, 8, 3), np.uint8)) == []


def test_a_judge_sees_whole_images_alone_and_verdicts_stay_in_their_order(world: ConceptSet, stub_judge: Any) -> None:
    judge = stub_judge(lambda image, concept: concept.name == "Cat")
    images = np.stack([SOUND, plain(0, 0, 0), SOUND, plain(9, 9, 9)])
    asked = [world.find(name) for name in ("Dog", "Cat", "Cat", "Dog")]
    found = verdicts(judge, images, asked, image_errors(images))
    assert [verdict.present for verdict in found] == [False, None, True, None]
    assert [name for name, _ in judge.requested] == ["Dog", "Cat"]


def test_an_image_that_much_is_asked_of_is_counted_once(
    row: Callable[..., dict[str, Any]], table: Callable[..., pa.Table]
) -> None:
    null = {"present": None, "score": None}
    rows = [
        row("forget", False),
        row("forget", None, seed=1, image_error="blanked", **{"score": None}),
        *(row(axis, None, prompt="p", image_error="not finite") | null for axis in ("adjacent", "retain")),
        row("retain", None, prompt="p", model_id="m2", image_error="not finite") | null,
        row("retain", None, prompt="p", seed=1) | null,
    ]
    found = broken_images(table(rows))
    assert found == {"not finite": 2, "blanked": 1}
    assert counted(found) == "3 images are no evidence (2 not finite, 1 blanked)"
    assert counted({"one colour": 1}) == "1 image is no evidence (1 one colour)"
