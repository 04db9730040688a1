"""Drawing images until an interval answers: looks, their level, and what is asked."""

import numpy as np
import pytest

from efface.errors import UserError
from efface.eval.scores.intervals import t_quantile
from efface.eval.scores.sequential import LookAnswer, look_level, look_sizes, read_question, settled, side


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (8, (1, 2, 4, 8)), (20, (1, 2, 3, 5, 10, 20))])
def test_looks_double_up_to_all_images(most: int, sizes: tuple[int, ...]) -> None:
    assert look_sizes(most) == sizes


def test_all_looks_together_hold_95_percent() -> None:
    assert look_level(1) == pytest.approx(0.95)
    assert look_level(5) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("level", "quantiles"),
    [(0.9, [6.314, 2.920, 2.132, 1.812, 1.697, 1.645]), (0.99, [63.657, 9.925, 4.604, 3.169, 2.750, 2.576])],
)
def test_quantiles_of_other_levels_are_those_of_the_tables(level: float, quantiles: list[float]) -> None:
    assert t_quantile(np.array([1, 2, 4, 10, 30, np.inf]), level) == pytest.approx(quantiles, rel=1e-3)


def test_an_interval_answers_where_it_leaves_the_threshold_out() -> None:
    assert side(0.91, 0.99, 0.9) == "above"
    assert side(0.7, 0.89, 0.9) == "below"
    assert side(0.9, 0.95, 0.9) is side(0.8, 0.95, 0.9) is None


def test_an_axis_is_settled_when_every_method_has_its_answer() -> None:
    given, open_ = LookAnswer("above", 0.95, 1.0), LookAnswer(None, 0.8, 1.0)
    assert settled({"forget": {"esd": given, "uce": given}, "retain": {"esd": given, "uce": open_}}) == {"forget"}


def test_a_question_is_read_and_a_misspelt_one_is_a_users_mistake() -> None:
    assert read_question(["forget=0.9", "retain"]) == {"forget": 0.9, "retain": None}
    for text in ("forgot=0.9", "forget=often", "forget=1.5", "forget="):
        with pytest.raises(UserError, match=f"--until {text}: should"):
            read_question([text])
