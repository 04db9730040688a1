"""What can be looked up: for people a table, for programs JSON that parses."""

import json
from typing import Any

import pytest
from command import Efface

from efface.concepts.concept import concept_set_names
from efface.concepts.prompts import AXES
from efface.strict import shipped
from efface.train.method import method_names


def parsed(efface: Efface, *arguments: object) -> Any:
    said = efface(*arguments, "--json")
    assert said.code == 0 and said.err == ""
    return json.loads(said.out)


def names(found: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in found]


def test_methods(efface: Efface) -> None:
    found = parsed(efface, "methods")
    assert names(found) == method_names()
    assert all(method["summary"] and method["fields"] and method["strategies"] for method in found)


def test_one_method_with_all_its_fields(efface: Efface) -> None:
    (found,) = parsed(efface, "methods", "uce")
    ridge = next(field for field in found["fields"] if field["name"] == "ridge")
    assert ridge["default"] == 0.5 and ridge["description"]
    said = efface("methods", "uce")
    assert said.code == 0 and all(field["name"] in said.out for field in found["fields"])


def test_judges_bases_and_concept_sets(efface: Efface) -> None:
    assert names(parsed(efface, "judges")) == shipped("judges")
    assert names(parsed(efface, "bases")) == shipped("bases")
    assert names(parsed(efface, "concepts")) == concept_set_names()


@pytest.mark.parametrize("name", concept_set_names())
def test_one_concept_set(name: str, efface: Efface) -> None:
    found = parsed(efface, "concepts", name)
    assert found["name"] == name and all(concept["phrase"] for concept in found["concepts"])
    said = efface("concepts", name)
    assert said.code == 0 and found["concepts"][0]["name"] in said.out


def test_prompts(efface: Efface) -> None:
    found = parsed(efface, "prompts", "miniature")
    assert found["concept_set"] == "miniature" and all(set(count) == set(AXES) for count in found["prompts"].values())
    assert "no fault found" in efface("prompts", "miniature").out


def test_the_prompts_of_one_target(efface: Efface) -> None:
    found = parsed(efface, "prompts", "miniature", "--concept", "cat")
    assert {prompt["concept"] for prompt in found} == {"cat"}
    assert {prompt["axis"] for prompt in found} >= {"forget", "indirect", "adjacent", "retain"}


@pytest.mark.parametrize("command", ["methods", "judges", "concepts", "bases"])
def test_tables_for_people_name_everything(command: str, efface: Efface) -> None:
    said = efface(command)
    assert said.code == 0 and all(name in said.out for name in names(parsed(efface, command)))
