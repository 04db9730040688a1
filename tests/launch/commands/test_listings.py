"""What can be looked up: for people a table, for programs JSON that parses."""

import json
from pathlib import Path
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


def test_one_attack_with_all_its_fields(efface: RunEfface) -> None:
    (found,) = parsed(efface, "attacks", "token-search")
    assert [field["name"] for field in found["fields"]] == ["tokens", "steps", "top_k", "candidates"]
    assert all(field["description"] and field["default"] for field in found["fields"])
    result = efface("attacks", "token-search")
    assert result.code == 0 and all(field["name"] in result.out for field in found["fields"])


def test_one_kind_of_judge_with_all_its_keys(efface: RunEfface) -> None:
    (found,) = parsed(efface, "judges", "clip")
    assert {"source", "threshold", "present", "absent"} < {field["name"] for field in found["fields"]}
    result = efface("judges", "clip")
    assert result.code == 0 and all(field["name"] in result.out for field in found["fields"])


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["attacks", "token-serch"], "unknown attack 'token-serch': did you mean 'token-search'?"),
        (["judges", "clipp"], "unknown kind of judge 'clipp': did you mean 'clip'?"),
        (["attack", "--attack", "tokens"], "unknown attack 'tokens': did you mean 'token-search'?"),
        (["attack", "--set", "stepps=3"], "unknown key 'stepps', did you mean 'steps'?"),
        (["attack", "--set", "steps"], "--set 'steps' should be KEY=VALUE"),
    ],
)
def test_what_is_not_in_a_registry_is_refused(command: list[str], sentence: str, efface: RunEfface) -> None:
    result = efface(*command)
    assert result.code == 2 and sentence in result.err


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


@pytest.mark.parametrize("command", ["methods", "judges", "attacks", "concepts", "bases"])
def test_tables_for_people_name_everything(command: str, efface: RunEfface) -> None:
    result = efface(command)
    assert result.code == 0 and all(name in result.out for name in names(parsed(efface, command)))


def long_prompts(folder: Path) -> Path:
    rows = f"cat,{'very ' * 75}cat,cat,a cat\ndog,a dog,{'very ' * 75}dog,a hound\n"
    (folder / "long.csv").write_text("concept_name,direct_prompt,indirect_prompt_1,indirect_prompt_2\n" + rows)
    return folder / "long.csv"


def test_prompts_that_the_text_encoder_cuts_are_named_with_row_and_column(efface: RunEfface, tmp_path: Path) -> None:
    file = long_prompts(tmp_path)
    result = efface("prompts", file, "--concepts", "miniature")
    assert result.code == 0 and "no error found" not in result.out
    lines = result.out.splitlines()
    assert "2 of 6 prompts are longer than the 75 tokens that the text encoder of base 'miniature' reads" in lines[-4]
    message = "(76 tokens, and what asks for '{}' stands behind them)"
    assert lines[-3] == f"row 2, column direct_prompt {message.format('cat')}"
    assert lines[-2] == f"row 3, column indirect_prompt_1 {message.format('dog')}"
    assert lines[-1].endswith("prompts are cut")
    of_one = efface("prompts", file, "--concepts", "miniature", "--concept", "cat").out.splitlines()
    assert of_one[-1] == lines[-3] and ": 1 of " in of_one[-2]
    found = parsed(efface, "prompts", file, "--concepts", "miniature")
    assert found["window"] == 75
    assert found["cut"][0] == {"concept": "cat", "row": 2, "column": "direct_prompt", "tokens": 76, "unnamed": True}


def test_the_base_that_reads_the_prompts_can_be_named_and_may_not_be_here(efface: RunEfface, tmp_path: Path) -> None:
    file = long_prompts(tmp_path)
    assert "of base 'sd-v1-4' reads" in efface("prompts", file, "--concepts", "miniature", "--base", "sd-v1-4").out
    (tmp_path / "mine.yaml").write_text("name: mine\nsource: nobody/mine\n")
    result = efface("prompts", file, "--concepts", "miniature", "--base", tmp_path / "mine.yaml")
    assert result.code == 0 and "not fetched yet, nor is its tokenizer" in result.out
    assert "no error found" not in result.out
    assert parsed(efface, "prompts", file, "--concepts", "miniature", "-b", tmp_path / "mine.yaml")["window"] is None


def test_a_concept_set_read_by_a_base_that_is_not_here_says_that_lengths_are_not_known(
    efface: RunEfface, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nsource: nobody/mine\n")
    result = efface("concepts", "miniature", "--base", tmp_path / "mine.yaml")
    assert result.code == 0 and result.out.splitlines()[-1].startswith(
        "the base is not fetched yet, nor is its tokenizer"
    )


def test_a_concept_set_whose_phrase_is_cut_is_refused(efface: RunEfface, tmp_path: Path) -> None:
    concept = f"{{name: cat, kind: animal, phrase: {'very ' * 75}cat}}"
    (tmp_path / "long.yaml").write_text(f"name: long\nversion: 1\nconcepts: [{concept}]\n")
    assert (
        "concept 'cat', phrase: a prompt with it has 79 tokens"
        in efface("concepts", tmp_path / "long.yaml").error_message
    )


def test_text_of_a_file_acts_on_no_terminal(efface: RunEfface, tmp_path: Path) -> None:
    nasty = '"\\e[2J[red]a pet[/red] :cat:\\n\\u202e"'
    concept = f"{{name: cat, kind: animal, phrase: a cat, anchor: {nasty}, aliases: ['[bold]kitty[/bold]']}}"
    (tmp_path / "nasty.yaml").write_text(f"name: nasty\nversion: 1\nconcepts: [{concept}]\n")
    result = efface("concepts", tmp_path / "nasty.yaml")
    assert result.code == 0 and "\\x1b[2J[red]a pet[/red] :cat:\\n\\u202e" in result.out.replace("\n", "").replace(
        " " * 2, ""
    )
    assert "[bold]kitty[/bold]" in result.out and "\x1b" not in result.out and "\u202e" not in result.out
    (tmp_path / "nasty.csv").write_text('concept_name,direct_prompt\ncat,"\x1b]0;title\x07[red]a cat\x9b31m"\n')
    result = efface("prompts", tmp_path / "nasty.csv", "--concepts", tmp_path / "nasty.yaml", "-c", "cat")
    assert "\\x1b]0;title\\x07[red]a cat\\x9b31m" in result.out
    for arguments in (["prompts", tmp_path / "nasty.csv", "-c", "cat"], ["concepts", tmp_path / "nasty.yaml"]):
        more = ["--concepts", tmp_path / "nasty.yaml"] if arguments[0] == "prompts" else []
        printed = efface(*arguments, *more, "--json").out
        assert not set(printed) & {"\x1b", "\x07", "\x9b", "\u202e"} and json.loads(printed)


def test_an_unknown_name_acts_on_no_terminal(efface: RunEfface) -> None:
    result = efface("concepts", "\x1b[2J[red]x")
    assert result.code == 2 and "unknown concept set '\\x1b[2J[red]x'" in result.err and "\x1b[2J" not in result.err
