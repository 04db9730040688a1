"""From lists in a config to variants: which lists are axes, and which combinations are left out."""

from typing import Any

import pytest

from efface.cluster.campaign.sweep import variants
from efface.config_files import StrictModel
from efface.errors import UserError


class Config(StrictModel):
    rate: float = 1.0
    steps: int = 1
    names: tuple[str, ...] = ()
    kept: tuple[str, ...] | str | None = None


def configs(config: dict[str, Any], *exclude: dict[str, Any]) -> list[dict[str, Any]]:
    return [whole for whole, _ in variants(config, Config, exclude)]


def test_without_a_list_there_is_one_variant() -> None:
    assert list(variants({"rate": 2.0}, Config)) == [({"rate": 2.0}, {})]
    assert list(variants({}, Config)) == [({}, {})]


def test_a_list_is_an_axis_and_axes_are_crossed_in_their_order() -> None:
    found = list(variants({"rate": [1, 2], "steps": [3, 4], "names": ["a"]}, Config))
    assert [swept for _, swept in found] == [
        {"rate": 1, "steps": 3},
        {"rate": 1, "steps": 4},
        {"rate": 2, "steps": 3},
        {"rate": 2, "steps": 4},
    ]
    assert all(whole == {**swept, "names": ["a"]} for whole, swept in found)


def test_a_list_for_a_field_that_takes_a_list_is_its_value() -> None:
    assert configs({"names": ["a", "b"]}) == [{"names": ["a", "b"]}]
    assert configs({"kept": ["a", "b"]}) == [{"kept": ["a", "b"]}]
    assert configs({"names": []}) == [{"names": []}]


def test_a_list_of_lists_sweeps_over_lists() -> None:
    assert configs({"names": [["a"], ["a", "b"]]}) == [{"names": ["a"]}, {"names": ["a", "b"]}]
    assert configs({"kept": [["a"], []]}) == [{"kept": ["a"]}, {"kept": []}]


def test_an_axis_of_a_field_that_the_method_does_not_have_is_left_for_its_config_to_refuse() -> None:
    assert configs({"other": [1, 2]}) == [{"other": 1}, {"other": 2}]


def test_excluded_combinations_are_left_out() -> None:
    config = {"rate": [1, 2], "steps": [3, 4]}
    assert configs(config, {"rate": 2, "steps": 3}) == [
        {"rate": 1, "steps": 3},
        {"rate": 1, "steps": 4},
        {"rate": 2, "steps": 4},
    ]
    assert configs(config, {"rate": 2}) == [{"rate": 1, "steps": 3}, {"rate": 1, "steps": 4}]
    assert configs({"names": [["a"], ["b"]]}, {"names": ["b"]}) == [{"names": ["a"]}]


@pytest.mark.parametrize(
    ("config", "exclude", "problem"),
    [
        ({"rate": []}, {}, "the sweep over 'rate' has no values"),
        ({"rate": [1, 2]}, {"raet": 1}, "exclude names 'raet', which is not swept: did you mean 'rate'?"),
        ({"rate": 1}, {"rate": 1}, "exclude names 'rate', which is not swept"),
        ({"rate": [1, 2]}, {"rate": 3}, "exclude names rate=3, which is not in the sweep"),
    ],
)
def test_a_faulty_sweep_is_answered_in_a_sentence(
    config: dict[str, Any], exclude: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError) as error:
        configs(config, exclude)
    assert str(error.value).startswith(problem)


def test_a_sweep_that_excludes_everything_is_refused() -> None:
    with pytest.raises(UserError, match="exclude leaves nothing of the sweep over rate"):
        configs({"rate": [1, 2]}, {"rate": 1}, {"rate": 2})
