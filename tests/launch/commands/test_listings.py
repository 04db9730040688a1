"""What can be looked up: for people a table, for programs JSON that parses."""

import json
from typing import Any

import pytest
from command import RunEfface

from efface.concepts.concept import concept_set_names
from efface.concepts.prompts import AXES
from efface.config_files import list_configs
from efface.train.method import method_names


def parsed(efface: RunEfface, *arguments: object) -> Any:
    result = efface(*arguments, "--json")
    assert result.code == 0 and result.err == ""
    return json.loads(result.out)


def names(found: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in found]


def test_methods(efface: RunEfface) -> None:
    found = parsed(efface, "methods")
    assert names(found) == method_names()
    assert all(method["summary"] and method["fields"] and method["strategies"] for method in found)


def test_one_method_with_all_its_fields(efface: RunEfface) -> None:
    (found,) = parsed(efface, "methods", "uce")
    ridge = next(field for field in found["fields"] if field["name"] == "ridge")
    assert ridge["default"] == 0.5 and ridge["description"]
    result = efface("methods", "uce")
    assert result.code == 0 and all(field["name"] in result.out for field in found["fields"])


def test_judges_bases_and_concept_sets(efface: RunEfface) -> None:
    assert names(parsed(efface, "judges")) == list_configs("judges")
    assert names(parsed(efface, "bases")) == list_configs("bases")
    assert names(parsed(efface, "concepts")) == concept_set_names()


@pytest.mark.parametrize("name", concept_set_names())
def test_one_concept_set(name: str, efface: RunEfface) -> None:
    found = parsed(efface, "concepts", name)
    assert found["name"] == name and all(concept["phrase"] for concept in found["concepts"])
    result = efface("concepts", name)
    assert result.code == 0 and found["concepts"][0]["name"] in result.out


def test_prompts(efface: RunEfface) -> None:
    found = parsed(efface, "prompts", "miniature")
    assert found["concept_set"] == "miniature" and all(set(count) == set(AXES) for count in found["prompts"].values())
    assert "no error found" in efface("prompts", "miniature").out


def test_the_prompts_of_one_target(efface: RunEfface) -> None:
    found = parsed(efface, "prompts", "miniature", "--concept", "cat")
    assert {prompt["concept"] for prompt in found} == {"cat"}
    assert {prompt["axis"] for prompt in found} >= {"forget", "indirect", "adjacent", "retain"}


@pytest.mark.parametrize("command", ["methods", "judges", "concepts", "bases"])
def test_tables_for_people_name_everything(command: str, efface: RunEfface) -> None:
    result = efface(command)
    assert result.code == 0 and all(name in result.out for name in names(parsed(efface, command)))
