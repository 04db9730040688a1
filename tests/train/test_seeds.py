"""Random numbers are a function of seed and purpose."""

import torch

from efface.train.seeds import generator, integer, integers, normal


def test_a_draw_depends_on_seed_and_purpose_and_not_on_what_was_drawn_before() -> None:
    def draw(*purpose: str | int, seed: int = 0) -> list[float]:
        return normal((3,), generator(seed, *purpose), torch.device("cpu")).tolist()

    first = draw("noise", 1)
    torch.randn(5)
    assert draw("noise", 1) == first
    others = [draw("noise", 2), draw("noise", 1, seed=1), draw("order", 1), draw("noise", 11), draw("noise1")]
    assert all(other != first for other in others)


def test_integers_are_uniform_below_the_bound() -> None:
    counts = torch.bincount(integers(4, 4000, generator(0, "test")), minlength=4)
    assert len(counts) == 4 and all(abs(count - 1000) < 110 for count in counts)  # four standard deviations
    assert {integer(3, generator(0, "one", index)) for index in range(40)} == {0, 1, 2}
