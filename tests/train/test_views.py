"""CA's views: how often and how much an image is mirrored, shrunk and enlarged (their `CustomDiffusionDataset`)."""

import pytest

from efface.train.data.views import FAR, NEAR, View, draw_view
from efface.train.seeds import generator

DRAWN = [draw_view("zoom", 512, generator(number, "test")) for number in range(2000)]


def test_two_thirds_are_shrunk_to_a_third_or_more_and_the_others_enlarged_by_a_fifth_or_more() -> None:
    shrunk = [view.scale for view in DRAWN if view.scale <= 512]
    enlarged = [view.scale for view in DRAWN if view.scale > 512]
    assert abs(len(shrunk) / len(DRAWN) - 0.66) < 0.045  # four standard errors of a share of 2000
    assert min(shrunk) >= 512 // 3 and min(shrunk) < 175 and max(shrunk) > 505
    assert 614 <= min(enlarged) < 620 and 708 < max(enlarged) < 716  # int(1.2 x 512), int(1.4 x 512) left out


def test_half_are_mirrored_and_all_lie_inside() -> None:
    assert abs(sum(view.flip for view in DRAWN) / len(DRAWN) - 0.5) < 0.045
    for view in DRAWN:
        room = abs(view.scale - 512)
        assert 0 <= view.top <= room and 0 <= view.left <= room


def test_without_zoom_a_view_is_the_image_or_its_mirror() -> None:
    views = {draw_view("flip", 64, generator(number, "test")) for number in range(20)}
    assert views == {View(64, False, 64, 0, 0), View(64, True, 64, 0, 0)}


@pytest.mark.parametrize(("scale", "hints"), [(307, FAR), (308, ("",)), (512, ("",)), (513, NEAR)])
def test_a_caption_tells_of_what_is_far_or_near(scale: int, hints: tuple[str, ...]) -> None:
    """Far: less than 0.6 of 512, which is 307.2."""
    assert View(512, False, scale, 0, 0).hints() == hints
